"""Validation shared by the ops. Every message names the op, what was expected and what came."""

import torch

from dydiff_kernels.backends import STORAGE_DTYPES

LEGAL_DTYPES = (*STORAGE_DTYPES, torch.float64)
_DTYPE_NAMES = ", ".join(str(dtype).removeprefix("torch.") for dtype in LEGAL_DTYPES)


def check_frames(op: str, name: str, x: torch.Tensor) -> None:
    """``x`` is a floating tensor (B, S, *rest) with at least one frame."""
    if x.dtype not in LEGAL_DTYPES:
        raise ValueError(f"{op}: {name} has dtype {x.dtype}; expected one of {_DTYPE_NAMES}")
    if x.ndim < 2:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}; expected (B, S, *rest), at least 2 dimensions")
    if x.shape[1] < 1:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}; expected at least one frame in dimension 1")


def check_like(op: str, name: str, x: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """``x`` is a legal tensor of the shape and on the device of ``other``; storage types may differ, but float64 may not mix."""
    if x.shape != other.shape:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}; expected {tuple(other.shape)}, that of {other_name}"
        )
    if x.device != other.device:
        raise ValueError(f"{op}: {name} is on {x.device}; expected {other.device}, where {other_name} is")
    if x.dtype not in LEGAL_DTYPES:
        raise ValueError(f"{op}: {name} has dtype {x.dtype}; expected one of {_DTYPE_NAMES}")
    if (x.dtype == torch.float64) != (other.dtype == torch.float64):
        raise ValueError(
            f"{op}: {name} has dtype {x.dtype}; {other_name} has {other.dtype}, and float64 cannot be mixed"
        )


def check_per_sample(
    op: str, name: str, value: torch.Tensor, batch: int, low: float | None = 0.0, high: float = 1.0
) -> torch.Tensor:
    """``value`` as float64 (B,). Values on the CPU are checked to lie in [low, high]; on a GPU that would force a wait."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"{op}: {name} is {kind}; expected a float64 or float32 tensor of shape ({batch},)")
    if value.shape != (batch,):
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}; expected ({batch},), one value per sample")
    value = value.detach().to(torch.float64)
    if low is not None and value.device.type == "cpu" and batch:
        lowest, highest = value.min().item(), value.max().item()
        if not (low <= lowest and highest <= high):
            worst = highest if highest > high or highest != highest else lowest
            raise ValueError(f"{op}: {name} holds {worst}; expected values in [{low:g}, {high:g}]")
    return value


def per_sample(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``value`` (B,) shaped for broadcasting over ``like`` (B, ...), on its device, in its dtype."""
    return value.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))


def compute_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """What the references calculate in: float64 if any tensor is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
