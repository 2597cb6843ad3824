"""The element-wise halves of an adaLN-Zero branch in plain torch: the specification (Peebles & Xie 2023, section 3)."""

import torch
import torch.nn.functional as F


def modulated_norm_reference(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, epsilon: float, frames_last: bool
) -> torch.Tensor:
    """norm(x)·(1 + scale) + shift, norm without parameters of its own over the last axis."""
    out = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=epsilon), 1 + scale)
    return out.transpose(1, 2).contiguous().transpose(1, 2) if frames_last else out


def gated_residual_reference(x: torch.Tensor, gate: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """x + gate·branch."""
    return torch.addcmul(x, gate, branch)
