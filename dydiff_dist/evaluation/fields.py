"""Scores of what a field looks like: spectra, divergence, image similarity.

Letters: M members, S lead times, C channels, H W height and width, K wavenumbers.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from dydiff_dist.evaluation.suites import Suite, Terms

_NO_POWER = 1e-6
"""Share of the largest power below which a wavenumber counts as empty, e.g. past a simulation's dealiasing."""
SSIM_WINDOW = 11
"""Edge of SSIM's windows in pixels, below which a frame has none."""


def power_spectrum(frames: np.ndarray, periodic: bool) -> np.ndarray:
    """Power by radial wavenumber, (..., C, H, W) -> (..., K), summed over channels.

    P(k) = ½ Σ |x̂(k)|² over the shell round(|k|) = k, k = 0..K-1, K = min(H, W) // 2 + 1, with x̂ normalised so that the
    sum over all wavenumbers is ½ the mean square of the frame: of a velocity, the kinetic energy spectrum. Wavenumbers
    count waves per frame edge. Frames that don't wrap around are first freed of their mean and tapered by a Hann
    window, whose mean square is divided out.
    """
    height, width = frames.shape[-2:]
    frames = frames.astype(np.float64)
    if not periodic:
        window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
        frames = (frames - frames.mean(axis=(-2, -1), keepdims=True)) * window / np.sqrt(np.square(window).mean())
    waves = np.fft.rfft2(frames, norm="forward")
    power = (np.square(waves.real) + np.square(waves.imag)).sum(axis=-3)
    return power.reshape(*power.shape[:-2], -1) @ _shares_of_shells(height, width)


def _shares_of_shells(height: int, width: int) -> np.ndarray:
    """(H (W // 2 + 1), K): which share of |x̂|² of a wave of a real field's FFT goes to the shell of its wavenumber.

    ½, and as much again for the conjugate wave that such an FFT leaves out: of all but the first column, and the last
    one of an even width.
    """
    across = np.fft.rfftfreq(width, 1 / width)
    shell = np.rint(np.hypot(np.fft.fftfreq(height, 1 / height)[:, None], across)).astype(int)
    share = np.broadcast_to(np.where((across == 0) | (2 * across == width), 0.5, 1.0), shell.shape)
    num_shells = min(height, width) // 2 + 1
    return np.where(shell.reshape(-1, 1) == np.arange(num_shells), share.reshape(-1, 1), 0.0)


def divergence_and_gradient(
    frames: np.ndarray, along_w: int, along_h: int, periodic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares of ∂u/∂x + ∂v/∂y and of all four velocity derivatives, (..., C, H, W) -> two (...).

    Args:
        frames: velocities.
        along_w, along_h: channels of u, along x and the width, and of v, along y and the height.
        periodic: whether the field wraps around; derivatives are then spectral, else central differences, per pixel.
    """
    slope = _spectral_slope if periodic else lambda field, axis: np.gradient(field, axis=axis)
    u, v = (frames[..., channel, :, :].astype(np.float64) for channel in (along_w, along_h))
    u_x, u_y, v_x, v_y = slope(u, -1), slope(u, -2), slope(v, -1), slope(v, -2)
    divergence, *squares = (np.square(x).mean(axis=(-2, -1)) for x in (u_x + v_y, u_x, u_y, v_x, v_y))
    return divergence, squares[0] + squares[1] + squares[2] + squares[3]


def spectrum_suite(periodic: bool) -> Suite:
    """Power spectra of members, ensemble mean and truth, and the members' distance from the truth in decibels."""

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        return {
            "spectrum_members": power_spectrum(members, periodic).mean(axis=0),
            "spectrum_mean": power_spectrum(members.mean(axis=0, dtype=np.float64), periodic),
            "spectrum_truth": power_spectrum(truth, periodic),
        }

    def derive(terms: Terms) -> Terms:
        truth, members = (terms[f"spectrum_{name}"][..., 1:] for name in ("truth", "members"))
        carries_power = truth > _NO_POWER * truth.max(axis=-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            squared = np.square(10 * np.log10(members / truth))
            count = carries_power.sum(axis=-1)
            distance = np.sqrt(np.where(carries_power, squared, 0).sum(axis=-1) / count)
        return dict(terms) | {"log_spectral_distance_db": np.where(np.isfinite(distance), distance, np.nan)}

    return Suite(
        "spectrum",
        measure,
        derive,
        ("log_spectral_distance_db",),
        distances=("log_spectral_distance_db",),
        profiles=("spectrum_members", "spectrum_mean", "spectrum_truth"),
        protocol={
            "spectrum": "half the power in shells round(|k|), summed over channels, averaged over members and cases",
            "taper": "none (periodic)" if periodic else "Hann",
            "log_spectral_distance_db": "root mean square of 10 log10(members / truth) over k >= 1 where the truth "
            f"has more than {_NO_POWER:g} of its largest power",
        },
    )


def flow_suite(along_w: int, along_h: int, periodic: bool) -> Suite:
    """Relative divergence of the members and of the truth: 0 for an incompressible flow, 1/√2 for independent noise.

    The arguments are those of ``divergence_and_gradient``.
    """

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        terms: Terms = {}
        for name, frames in (("members", members), ("truth", truth[None])):
            divergence, gradient = divergence_and_gradient(frames, along_w, along_h, periodic)
            terms[f"divergence_{name}"], terms[f"gradient_{name}"] = divergence.mean(axis=0), gradient.mean(axis=0)
        return terms

    def derive(terms: Terms) -> Terms:
        def relative(name: str) -> np.ndarray:
            gradient = terms[f"gradient_{name}"]
            return np.sqrt(terms[f"divergence_{name}"] / np.where(gradient > 0, gradient, np.nan))

        return {"relative_divergence": relative("members"), "relative_divergence_truth": relative("truth")}

    return Suite(
        "flow",
        measure,
        derive,
        ("relative_divergence", "relative_divergence_truth"),
        protocol={
            "relative_divergence": "rms divergence over rms of all velocity derivatives",
            "derivatives": "spectral" if periodic else "central differences",
        },
    )


def patch_gradients(frames: np.ndarray, patch_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute differences between neighbouring pixels of two patches, and of one patch, (..., C, H, W) -> two
    (...), over channels and both directions, in the units of the frames.

    Patches of ``patch_pixels`` x ``patch_pixels`` begin at the first pixel; beyond the frame's own edges nothing is
    compared. NaN where there are no such neighbours.
    """
    sums, counts = [0.0, 0.0], [0, 0]
    for axis in (-2, -1):
        differences = np.abs(np.diff(frames.astype(np.float64), axis=axis)).swapaxes(axis, -1)
        crosses = np.arange(1, frames.shape[axis]) % patch_pixels == 0
        for kind, where in enumerate((crosses, ~crosses)):
            sums[kind] = sums[kind] + differences[..., where].sum(axis=(-3, -2, -1))
            counts[kind] += int(where.sum()) * math.prod(differences.shape[-3:-1])
    across, inside = (np.asarray(total) / (count or np.nan) for total, count in zip(sums, counts, strict=True))
    return across, inside


def blockiness_suite(patch_pixels: int) -> Suite:
    """How much steeper members and truth are across the edges of the model's patches than inside them: 1 where the
    edges can't be seen. Members are taken one by one, as their mean is smoother inside the patches than each of them.

    Args:
        patch_pixels: as in ``patch_gradients``.
    """

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        terms: Terms = {}
        for name, ensemble in (("members", members), ("truth", truth[None])):
            gradients = [patch_gradients(frames, patch_pixels) for frames in ensemble]
            terms[f"edge_gradient_{name}"], terms[f"inner_gradient_{name}"] = np.mean(gradients, axis=0)
        return terms

    def derive(terms: Terms) -> Terms:
        def ratio(name: str) -> np.ndarray:
            inner = terms[f"inner_gradient_{name}"]
            return terms[f"edge_gradient_{name}"] / np.where(inner > 0, inner, np.nan)

        return {"blockiness": ratio("members"), "blockiness_truth": ratio("truth")}

    return Suite(
        "blockiness",
        measure,
        derive,
        ("blockiness", "blockiness_truth"),
        protocol={
            "blockiness": "mean absolute difference of neighbouring pixels across patch edges over that inside "
            "patches, both averaged over members and cases first",
            "patch_pixels": patch_pixels,
        },
    )


def image_suite(data_range: float) -> Suite:
    """PSNR and SSIM: averaged over members, and of the member with the best clip.

    Args:
        data_range: largest minus smallest possible value; forecasts are clipped to 0..data_range.
    """

    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        clipped = np.clip(members, 0, data_range)
        terms: Terms = {}
        for name, score in (("psnr", psnr), ("ssim", ssim)):
            by_member = score(clipped, truth, data_range)
            terms[name] = by_member.mean(axis=0)
            terms[f"{name}_best_member"] = by_member[by_member.mean(axis=1).argmax()]
        return terms

    return Suite(
        "image",
        measure,
        dict,
        ("psnr", "psnr_best_member", "ssim", "ssim_best_member"),
        protocol={
            "data_range": data_range,
            "psnr": "per frame over all channels, then averaged; a perfect frame counts as 100 dB",
            "ssim": "Gaussian window 11, sigma 1.5, K 0.01 and 0.03, whole windows only, per frame, then averaged",
            "members": "averaged over members; best_member takes the member with the best mean over lead times",
        },
    )


def psnr(frames: np.ndarray, truth_SCHW: np.ndarray, data_range: float) -> np.ndarray:
    """10 log10(data_range² / MSE) per frame in dB, at most 100; arguments and result as of ``ssim``.

    Examples:
        >>> float(psnr(np.full((1, 1, 4, 4), 25.5), np.zeros((1, 1, 4, 4)), data_range=255.0)[0])
        20.0
    """
    mse = _of_each(frames, lambda forecast: np.square(forecast - truth_SCHW).mean(axis=(1, 2, 3)))
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(data_range**2 / mse), 100.0)


def ssim(frames: np.ndarray, truth_SCHW: np.ndarray, data_range: float) -> np.ndarray:
    """Structural similarity (Wang et al. 2004, eq. 13) per frame, over windows of 11 that lie inside the frame.

    Args:
        frames: (..., S, C, H, W), any number of forecasts of one truth.
        truth_SCHW: what they are compared with.
        data_range: largest minus smallest possible value.

    Returns:
        (..., S) float64.

    Raises:
        ValueError: frames below 11x11.
    """
    if min(truth_SCHW.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs frames of at least 11x11, they are {truth_SCHW.shape[-2:]}; leave 'image' out")
    truth = truth_SCHW.astype(np.float64)
    truth_mean = _window_mean(truth)
    truth_variance = _window_mean(np.square(truth)) - np.square(truth_mean)
    of_mean, of_contrast = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def similarity(forecast: np.ndarray) -> np.ndarray:
        mean = _window_mean(forecast)
        variance = _window_mean(np.square(forecast)) - np.square(mean)
        covariance = _window_mean(forecast * truth) - mean * truth_mean
        luminance = (2 * mean * truth_mean + of_mean) / (np.square(mean) + np.square(truth_mean) + of_mean)
        structure = (2 * covariance + of_contrast) / (variance + truth_variance + of_contrast)
        return (luminance * structure).mean(axis=(1, 2, 3))

    return _of_each(frames, similarity)


def _of_each(frames: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A score (S,) of each forecast (S, C, H, W) in float64, one by one: fast in the cache, and memory for one."""
    forecasts = frames.reshape(-1, *frames.shape[-4:])
    return np.stack([score(forecast.astype(np.float64)) for forecast in forecasts]).reshape(frames.shape[:-3])


def _window_mean(frames: np.ndarray) -> np.ndarray:
    """Means in Gaussian windows that lie inside the frame, (..., H, W) -> (..., H - 10, W - 10)."""
    margin = SSIM_WINDOW // 2
    means = gaussian_filter(frames, sigma=1.5, radius=margin, axes=(-2, -1))
    return means[..., margin:-margin, margin:-margin]


def _spectral_slope(field: np.ndarray, axis: int) -> np.ndarray:
    """Derivative of a periodic field along an axis, per pixel; the Nyquist wave, which has no slope, gives none."""
    size = field.shape[axis]
    waves = 2j * np.pi * np.fft.rfftfreq(size)
    if size % 2 == 0:
        waves[-1] = 0
    shape = [1] * field.ndim
    shape[axis] = len(waves)
    return np.fft.irfft(np.fft.rfft(field, axis=axis) * waves.reshape(shape), n=size, axis=axis)
