"""Storage types of the kernels, and what the references calculate in."""

import torch

LEGAL_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What the ops accept: the kernels' storage types, and float64 for the references."""


def compute_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """What the references calculate in: float64 if any tensor is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def per_sample(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``value`` (B,) shaped for broadcasting over ``like`` (B, ...), on its device, in its dtype."""
    return value.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))


def square_roots(gamma_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(√γ̄, √(1-γ̄)) in float64 for γ̄ (B,): how much of a frame, and of the mixed frame before, is in a mixed frame."""
    gamma_bar = gamma_bar.double()
    return gamma_bar.sqrt(), (1.0 - gamma_bar).sqrt()
