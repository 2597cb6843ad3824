"""Weighted squared error in plain torch (the training loss of arXiv 2503.00951, with weights); differentiable."""

import torch


def denoising_loss_reference(output: torch.Tensor, target: torch.Tensor | None, weights: torch.Tensor) -> torch.Tensor:
    """loss_b = Σ_s w_bs Σ_r (output - target)², (B,), for ``weights`` (B, S).

    Frames of weight 0 are not looked at; no target is 0.
    """
    masked = (weights == 0).view(*weights.shape, *[1] * (output.ndim - 2))
    error = output.to(weights.dtype) if target is None else output.to(weights.dtype) - target.to(weights.dtype)
    error = error.masked_fill(masked, 0.0)
    return (weights * error.square().reshape(*weights.shape, output.shape[2:].numel()).sum(2)).sum(1)
