"""Mean scaling: each sample is measured in units of its own history, as forecasters of many series of unlike size do.

Salinas et al. 2020 (DeepAR), section 3.3: the scale of a series is the mean absolute value of its context. Shards keep
the values as they are; whoever brings a sample to network units divides by its scale first, and whoever brings a
forecast back multiplies by it last:

    network units = (stored / sample scale - shift) / scale

A history of zeros alone, as before a series begins, has no scale of its own. There GluonTS's MeanScaler takes the mean
absolute value of the same variate over the batch; here it is that of the training series, which the manifest holds
(``frames.empty_history_scale``), so that a sample's scale does not depend on its neighbours.
"""

from collections.abc import Sequence

import numpy as np


def history_scale(history: np.ndarray, empty_scale: Sequence[float] = ()) -> np.ndarray:
    """The scale of each channel: the mean absolute value over history frames and pixels.

    (..., S_h, C, H, W) -> (..., 1, C, 1, 1) float32; summed in float64, so that it does not depend on who asks. Where
    the mean is 0 it is ``empty_scale`` of the channel, C numbers above 0, or 1 where these are not known.
    """
    mean = np.abs(history.astype(np.float64)).mean(axis=(-4, -2, -1), keepdims=True)
    empty = np.asarray(empty_scale or 1.0, np.float64).reshape(-1, 1, 1)
    return np.where(mean > 0, mean, empty).astype(np.float32)
