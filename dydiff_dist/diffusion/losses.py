"""The training loss from its parts: squared error per frame, weights, means, and the loss by timestep.

Letters: B batch, S frames, N timesteps.
"""

import torch
from torch import Tensor

from dydiff_dist.diffusion.names import Prediction


def weighted_mean_square(error: Tensor, weights: Tensor | None, first_frame: int) -> Tensor:
    """Mean square per sample over the frames from ``first_frame`` on, (B, S, *rest) -> (B,).

    ``weights`` are (B,), or (B, S) for frames with their own timesteps.
    """
    per_frame = error.square().flatten(2).mean(2) if error.ndim > 2 else error.square()
    if weights is not None:
        per_frame = per_frame * weights.to(per_frame.dtype).view(len(weights), -1)
    return per_frame[:, first_frame:].mean(1)


def frame_mask(first_frame: int, num_frames: int) -> Tensor | None:
    """Zeros for the frames before ``first_frame``, ones after, (S,) float64; None if all frames count."""
    return (torch.arange(num_frames) >= first_frame).double() if first_frame else None


def check_first_frame(first_frame: int, num_frames: int) -> None:
    """Raises ``ValueError`` unless a loss from ``first_frame`` on has frames to look at."""
    if not 0 <= first_frame < num_frames:
        raise ValueError(
            f"num_history_frames is {first_frame}; a loss on future frames of a sequence of {num_frames} needs it in "
            f"0..{num_frames - 1}"
        )


def min_snr_weight(alpha_bar: Tensor, prediction: Prediction, limit: float) -> Tensor:
    """Min-SNR-γ weights (Hang et al. 2023, section 3.4), elementwise; ``limit`` is their γ (5 is usual).

    min(SNR, limit) is the weight of the x0 error; SNR = ᾱ/(1-ᾱ) turns it into that of eps, SNR + 1 into that of v.
    """
    snr = alpha_bar / (1 - alpha_bar)
    weight = snr.clamp(max=limit)
    if prediction == "eps":
        return weight / snr
    return weight / (snr + 1) if prediction == "v" else weight


def loss_by_timestep_bin(
    per_sample: Tensor, timesteps: Tensor, num_timesteps: int, num_bins: int = 10
) -> tuple[Tensor, Tensor]:
    """Sums of the loss over equal ranges of timesteps; sums and counts add up over ranks and steps before dividing.

    Args:
        per_sample: (B,) losses.
        timesteps: (B,) in 0..N-1.
        num_timesteps: N.
        num_bins: bin i holds timesteps [i N / num_bins, (i + 1) N / num_bins).

    Returns:
        (loss sums, counts), (num_bins,) float64 each, on the device of ``per_sample``.
    """
    if not 1 <= num_bins <= num_timesteps:
        raise ValueError(f"num_bins is {num_bins}; it must lie in 1..{num_timesteps}, the number of timesteps")
    timesteps = timesteps.to(per_sample.device)
    bins = torch.div(timesteps * num_bins, num_timesteps, rounding_mode="floor")
    sums, counts = torch.zeros(2, num_bins, dtype=torch.float64, device=per_sample.device)
    sums.index_add_(0, bins, per_sample.detach().double())
    counts.index_add_(0, bins, torch.ones_like(per_sample, dtype=torch.float64))
    return sums, counts
