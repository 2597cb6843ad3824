"""How well frames come back from an autoencoder, over many samples.

Letters: S frames, C channels, H W height and width.
"""

import numpy as np

from dydiff_dist.evaluation.colors import looks_like_rain
from dydiff_dist.evaluation.fields import SSIM_WINDOW, psnr, ssim
from dydiff_dist.evaluation.rain import RainProtocol, contingency_counts, event_scores

_RAIN = RainProtocol()


class ReconstructionScores:
    """PSNR, SSIM and, for rain and radar, CSI of decoded frames, in stored units; additive over samples."""

    def __init__(self, data_range: float, *, channels: tuple[str, ...] = (), units: str = "", integer: bool = False):
        """
        Args:
            data_range: largest minus smallest possible value, or seen in the training data, in stored units.
            channels, units: of the data; they tell whether it is rain.
            integer: whether stored values are 0..data_range, to which decoded frames are then clipped.
        """
        self.data_range, self.integer = data_range, integer
        self.is_rain = looks_like_rain(channels, units)
        self._sums: dict[str, float] = {"num_frames": 0.0, "psnr": 0.0, "ssim": 0.0, "mse": 0.0}
        self._counts = np.zeros((len(_RAIN.thresholds), 4))

    def add(self, decoded_SCHW: np.ndarray, truth_SCHW: np.ndarray) -> None:
        """Adds one sample: frames as decoded and as stored, both (S, C, H, W) in stored units."""
        truth = truth_SCHW.astype(np.float32)
        decoded = np.clip(decoded_SCHW, 0, self.data_range) if self.integer else decoded_SCHW
        self._sums["num_frames"] += len(truth)
        self._sums["psnr"] += float(psnr(decoded, truth, self.data_range).sum())
        self._sums["mse"] += float(np.square(decoded.astype(np.float64) - truth).mean(axis=(1, 2, 3)).sum())
        if min(truth.shape[-2:]) >= SSIM_WINDOW:
            self._sums["ssim"] += float(ssim(decoded, truth, self.data_range).sum())
        else:
            self._sums["ssim"] = np.nan
        if self.is_rain and truth.shape[1] == 1:
            self._counts += contingency_counts(decoded[None, :, 0], truth[:, 0], _RAIN).sum(axis=0)

    def merge(self, others: "list[ReconstructionScores]") -> "ReconstructionScores":
        """Adds other processes' scores to these."""
        for other in others:
            for name, value in other._sums.items():
                self._sums[name] += value
            self._counts += other._counts
        return self

    def summary(self) -> dict[str, float]:
        """Means over frames: psnr in dB (a perfect frame counts as 100), ssim, mse in stored units, and csi by
        threshold where there were events; beside them the ``data_range`` of psnr and ssim."""
        count = max(self._sums["num_frames"], 1.0)
        scores = {"data_range": self.data_range} | {name: self._sums[name] / count for name in ("psnr", "ssim", "mse")}
        if self.is_rain:
            csi = event_scores(self._counts)["csi"]
            scores |= {f"csi_{threshold:g}": float(v) for threshold, v in zip(_RAIN.thresholds, csi, strict=True)}
        return {name: value for name, value in scores.items() if np.isfinite(value)}


def format_reconstruction(scores: dict[str, float]) -> str:
    """One line: ``PSNR 34.21 dB (range 255), SSIM 0.951, CSI 16: 0.97, 74: 0.93``."""
    parts = [f"PSNR {scores['psnr']:.2f} dB (range {scores['data_range']:.4g})"]
    if "ssim" in scores:
        parts.append(f"SSIM {scores['ssim']:.4f}")
    csi = [f"{name.removeprefix('csi_')}: {value:.3f}" for name, value in scores.items() if name.startswith("csi_")]
    return ", ".join(parts + (["CSI " + ", ".join(csi)] if csi else []))
