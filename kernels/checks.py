"""Validation shared by the ops. Every message names the op, what was expected and what came."""

import math
from typing import Literal

import torch

from dydiff_kernels.counter import NoiseCounter, check_counter
from dydiff_kernels.dtypes import LEGAL_DTYPES

_DTYPE_NAMES = ", ".join(str(dtype).removeprefix("torch.") for dtype in LEGAL_DTYPES)

Range = Literal["(0, 1]", "[0, 1]", "[0, inf)", "(-inf, inf)"]
_IN_RANGE = {
    "(0, 1]": lambda value: 0.0 < value <= 1.0,
    "[0, 1]": lambda value: 0.0 <= value <= 1.0,
    "[0, inf)": lambda value: 0.0 <= value < math.inf,
    "(-inf, inf)": math.isfinite,
}


def check_dtype(op: str, name: str, x: torch.Tensor) -> None:
    """``x`` is stored in a type that the kernels or the references know."""
    if x.dtype not in LEGAL_DTYPES:
        raise ValueError(f"{op}: {name} has dtype {x.dtype}; expected one of {_DTYPE_NAMES}")


def check_frames(op: str, name: str, x: torch.Tensor) -> None:
    """``x`` is a floating tensor (B, S, *rest) with at least one frame."""
    check_dtype(op, name, x)
    if x.ndim < 2:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}; expected (B, S, *rest), at least 2 dimensions")
    if x.shape[1] < 1:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}; expected at least one frame in dimension 1")


def check_like(op: str, name: str, x: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """``x`` has the shape and the device of ``other`` and a legal dtype; only float64 must not mix with others."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{op}: {name} is {type(x).__name__}; expected a tensor")
    if x.shape != other.shape:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}; expected {tuple(other.shape)}, that of {other_name}"
        )
    if x.device != other.device:
        raise ValueError(f"{op}: {name} is on {x.device}; expected {other.device}, where {other_name} is")
    check_dtype(op, name, x)
    if (x.dtype == torch.float64) != (other.dtype == torch.float64):
        raise ValueError(
            f"{op}: {name} has dtype {x.dtype}; {other_name} has {other.dtype}, and float64 cannot be mixed"
        )


def check_per_sample(op: str, name: str, value: torch.Tensor, batch: int, within: Range) -> torch.Tensor:
    """``value`` as float64 (B,). Values on the CPU must lie ``within``; on a GPU a check would force a wait."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"{op}: {name} is {kind}; expected a float64 or float32 tensor of shape ({batch},)")
    if value.shape != (batch,):
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}; expected ({batch},), one value per sample")
    if value.dtype != torch.float64 or value.requires_grad:
        value = value.detach().to(torch.float64)
    if value.device.type == "cpu":
        items, in_range = value.tolist(), _IN_RANGE[within]  # a batch is short; this is quicker than reductions
        if items and not (all(map(math.isfinite, items)) and in_range(min(items)) and in_range(max(items))):
            worst = next(item for item in items if not (math.isfinite(item) and in_range(item)))
            raise ValueError(f"{op}: {name} holds {worst}; expected values in {within}")
    return value


def check_no_grad(op: str, name: str, x: torch.Tensor) -> None:
    """``x`` does not ask for a gradient that the op could not give."""
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: {name} requires a gradient, which {op} does not pass on; detach it, or use torch.no_grad()"
        )


def check_noise(op: str, name: str, noise: torch.Tensor | NoiseCounter, like_name: str, like: torch.Tensor) -> None:
    """``noise`` is a tensor like ``like``, or a counter that names noise for it."""
    if isinstance(noise, NoiseCounter):
        check_counter(op, noise, like.shape)
    elif isinstance(noise, torch.Tensor):
        check_like(op, name, noise, like_name, like)
    else:
        raise ValueError(f"{op}: {name} is {type(noise).__name__}; expected a tensor or a NoiseCounter")


def check_noise_operator(op: str, operator: torch.Tensor | None, like_name: str, like: torch.Tensor) -> None:
    """``operator`` is None, or float32 (S, S) for the S frames of ``like``, float64 for float64."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    expected = ((like.shape[1],) * 2, dtype, like.device)
    if operator is None:
        return
    found = (tuple(operator.shape), operator.dtype, operator.device)
    if found != expected:
        raise ValueError(
            f"{op}: noise_operator has shape, dtype, device {found}; expected {expected}, for the frames of {like_name}"
        )
    check_no_grad(op, "noise_operator", operator)
