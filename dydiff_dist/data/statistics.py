"""One-pass statistics of frames: per-channel mean and spread, and the covariance of frames by lag."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dydiff_dist.data.manifest import FrameStatistics


@dataclass(eq=False)
class FrameMoments:
    """Sums over samples, in float64, that can be merged across shards and saved as JSON.

    Letters: S frames, C channels, H W height and width. All samples have the same (S, C).

    Examples:
        >>> moments = FrameMoments()
        >>> moments.add(np.arange(8.0).reshape(2, 1, 2, 2))
        >>> [float(value[0]) for value in moments.mean_and_std()]  # doctest: +ELLIPSIS
        [3.5, 2.29...]
    """

    num_samples: int = 0
    num_pixels: int = 0
    """Sum of H·W over samples."""
    frame_sum: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """Σ x^s over pixels and samples, (S, C)."""
    lag_product_sum: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """Σ x^s x^{s+m} over pixels, samples and frames s, for each lag m, (S, C)."""
    minimum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    maximum: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, frames_SCHW: np.ndarray, logvar_SCHW: np.ndarray | None = None) -> None:
        """Adds one sample (S, C, H, W).

        With ``logvar`` the frames are the mean of a Gaussian, and mean, spread and covariance are those of its draws:
        the variance, independent between frames, adds to lag 0 alone. Minimum and maximum are the mean's.

        Raises:
            ValueError: earlier samples had other (S, C).
        """
        S, C, H, W = frames_SCHW.shape
        frames_CSP = frames_SCHW.reshape(S, C, H * W).transpose(1, 0, 2).astype(np.float64)
        products_CSS = np.matmul(frames_CSP, frames_CSP.transpose(0, 2, 1))
        lag_products = np.stack([np.trace(products_CSS, lag, 1, 2) for lag in range(S)])
        if logvar_SCHW is not None:
            lag_products[0] += np.exp(logvar_SCHW.astype(np.float64)).sum((0, 2, 3))
        low, high = frames_CSP.min((1, 2)), frames_CSP.max((1, 2))
        self.merge(FrameMoments(1, H * W, frames_CSP.sum(-1).T, lag_products, low, high))

    def merge(self, other: FrameMoments) -> None:
        """Adds another set of sums to this one; ``ValueError`` as in ``add``."""
        if other.num_samples == 0:
            return
        if self.num_samples == 0:
            vars(self).update(vars(other))
            return
        if self.frame_sum.shape != other.frame_sum.shape:
            raise ValueError(
                f"samples of {other.frame_sum.shape} and {self.frame_sum.shape} (frames, channels) in one data set; "
                "convert them to one shape"
            )
        self.num_samples += other.num_samples
        self.num_pixels += other.num_pixels
        self.frame_sum = self.frame_sum + other.frame_sum
        self.lag_product_sum = self.lag_product_sum + other.lag_product_sum
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)

    @classmethod
    def merged(cls, parts: Iterable[FrameMoments]) -> FrameMoments:
        """The sums of all ``parts``."""
        whole = cls()
        for part in parts:
            whole.merge(part)
        return whole

    def standardisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Shift and scale that give each channel mean 0 and variance 1; a constant channel keeps scale 1."""
        mean, std = self.mean_and_std()
        return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Per channel, (C,) each, in stored units."""
        num_frames = self.frame_sum.shape[0]
        mean = self.frame_sum.sum(0) / (num_frames * self.num_pixels)
        mean_square = self.lag_product_sum[0] / (num_frames * self.num_pixels)
        variance = np.maximum(mean_square - mean**2, 0.0)
        # the difference of two sums leaves a rounding error where all values are equal
        is_constant = (self.minimum == self.maximum) & (variance <= 1e-12 * mean_square)
        return mean, np.where(is_constant, 0.0, np.sqrt(variance))

    def summary(self, shift: np.ndarray, scale: np.ndarray) -> FrameStatistics:
        """The statistics as the manifest holds them; the autocovariance in units of (x - shift) / scale."""
        mean, std = self.mean_and_std()
        return FrameStatistics(
            count=self.num_pixels * self.frame_sum.shape[0],
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            min=tuple(self.minimum.tolist()),
            max=tuple(self.maximum.tolist()),
            frame_autocovariance=tuple(self._autocovariance(shift, scale).tolist()),
        )

    def _autocovariance(self, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """E[x^s x^{s+m}] in network units by lag m, averaged over s and channels, (S,)."""
        num_frames = self.frame_sum.shape[0]
        covariance = []
        for lag in range(num_frames):
            count = (num_frames - lag) * self.num_pixels
            earlier, later = self.frame_sum[: num_frames - lag].sum(0), self.frame_sum[lag:].sum(0)
            centred = (self.lag_product_sum[lag] - shift * (earlier + later)) / count + shift**2
            covariance.append((centred / scale**2).mean())
        return np.array(covariance)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists; floats survive JSON exactly."""
        return {name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FrameMoments:
        """The inverse of :meth:`to_json`."""
        fields: dict[str, Any] = {name: np.asarray(x, float) if isinstance(x, list) else x for name, x in data.items()}
        return cls(**fields)
