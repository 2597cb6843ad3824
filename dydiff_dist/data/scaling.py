"""Mean scaling: each sample is measured in units of its own history, as forecasters of many series of unlike size do.

Salinas et al. 2020 (DeepAR), section 3.3: the scale of a series is the mean absolute value of its context. Shards keep
the values as they are; whoever brings a sample to network units divides by its scale first, and whoever brings a
forecast back multiplies by it last:

    network units = (stored / sample scale - shift) / scale
"""

import numpy as np


def history_scale(history: np.ndarray) -> np.ndarray:
    """The scale of each channel: the mean absolute value over history frames and pixels, 1 where that is 0.

    (..., S_h, C, H, W) -> (..., 1, C, 1, 1) float32; summed in float64, so that it does not depend on who asks.
    """
    mean = np.abs(history.astype(np.float64)).mean(axis=(-4, -2, -1), keepdims=True)
    return np.where(mean > 0, mean, 1.0).astype(np.float32)
