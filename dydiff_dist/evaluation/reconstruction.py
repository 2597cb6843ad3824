"""How well frames come back from an autoencoder: scores over many samples, and a picture of one.

Letters: S frames, C channels, H W height and width.
"""

import numpy as np
from matplotlib.figure import Figure

from dydiff_dist.evaluation import colors
from dydiff_dist.evaluation.colors import INK, FieldStyle, looks_like_rain
from dydiff_dist.evaluation.fields import SSIM_WINDOW, psnr, ssim
from dydiff_dist.evaluation.figures import frame_grid
from dydiff_dist.evaluation.rain import RainProtocol, contingency_counts, event_scores

_RAIN = RainProtocol()


class ReconstructionScores:
    """PSNR, SSIM and, for rain and radar, CSI of decoded frames, in stored units; additive over samples."""

    def __init__(self, data_range: float, *, channels: tuple[str, ...] = (), units: str = "", integer: bool = False):
        """
        Args:
            data_range: largest minus smallest possible (or seen) value.
            channels, units: of the data; they tell whether it is rain.
            integer: whether stored values are 0..data_range, to which decoded frames are then clipped.
        """
        self.data_range, self.integer = data_range, integer
        self.is_rain = looks_like_rain(channels, units)
        self._sums: dict[str, float] = {"num_frames": 0.0, "psnr": 0.0, "ssim": 0.0, "mse": 0.0}
        self._counts = np.zeros((len(_RAIN.thresholds), 4))

    def add(self, decoded_SCHW: np.ndarray, truth_SCHW: np.ndarray) -> None:
        """Counts one sample's frames."""
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
        threshold where there were events."""
        count = max(self._sums["num_frames"], 1.0)
        scores = {name: self._sums[name] / count for name in ("psnr", "ssim", "mse")}
        if self.is_rain:
            csi = event_scores(self._counts)["csi"]
            scores |= {f"csi_{threshold:g}": float(v) for threshold, v in zip(_RAIN.thresholds, csi, strict=True)}
        return {name: value for name, value in scores.items() if np.isfinite(value)}


def format_reconstruction(scores: dict[str, float]) -> str:
    """One line: ``PSNR 34.21 dB, SSIM 0.951, CSI 16: 0.97, 74: 0.93``."""
    parts = [f"PSNR {scores['psnr']:.2f} dB"]
    if "ssim" in scores:
        parts.append(f"SSIM {scores['ssim']:.4f}")
    csi = [f"{name.removeprefix('csi_')}: {value:.3f}" for name, value in scores.items() if name.startswith("csi_")]
    return ", ".join(parts + (["CSI " + ", ".join(csi)] if csi else []))


def reconstruction_figure(
    samples: list[tuple[str, np.ndarray, np.ndarray]], style: FieldStyle, title: str = "", num_columns: int = 6
) -> Figure:
    """Frames over what was decoded of them over the difference, in three rows per sample.

    Args:
        samples: (key, truth (S, C, H, W), decoded (S, C, H, W)) each, in stored units.
        style: how the data are shown.
        title: above all.
        num_columns: frames shown of each sample, evenly spaced.
    """
    figure, axes = frame_grid(3 * len(samples), num_columns + 1, samples[0][1].shape[-2:])
    for number, (key, truth, decoded) in enumerate(samples):
        shown = [style.show(frames.astype(np.float32)) for frames in (truth, decoded)]
        limits = style.limits(shown[0])
        error = shown[1] - shown[0]
        error = error.mean(axis=-1) if style.scalar is None else error
        span = (limits[1] - limits[0]) / 2 if style.scalar is not None else 0.5
        for row, label in enumerate((key, "decoded", "error")):
            axis = axes[3 * number + row, 0]
            axis.text(0.95, 0.5, label, transform=axis.transAxes, color=INK, fontsize=9, ha="right", va="center")
        for column, frame in enumerate(np.linspace(0, len(truth) - 1, num_columns).round().astype(int), start=1):
            for row, fields in enumerate(shown):
                axes[3 * number + row, column].imshow(style.rgb(fields[frame], limits), interpolation="nearest")
            axes[3 * number + 2, column].imshow(error[frame], cmap=colors.error_colormap(), vmin=-span, vmax=span)
    figure.text(0.012, 0.988, title or style.quantity, color=INK, fontsize=11, va="top", ha="left")
    return figure
