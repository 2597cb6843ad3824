"""Binding of the C++ modulation, forward and backward. Letters: G groups, T tokens of a group, D channels."""

import torch

from dydiff_kernels import native
from dydiff_kernels.outputs import new_result

MAX_CHANNELS = 4096
"""MAX_CHANNELS of csrc/args.h: a token's channels fill at most a row."""


def modulate(
    x_GTD: torch.Tensor, shift_GD: torch.Tensor, scale_GD: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y (G, T, D) in the dtype of x, statistics (G, T, 2) float32 for the backward pass)."""
    out = new_result(x_GTD.shape, x_GTD.dtype)
    statistics = torch.empty(*x_GTD.shape[:2], 2)
    native.run(
        "modulate",
        x_GTD,
        epsilon=epsilon,
        x=x_GTD,
        shift=_rows(shift_GD),
        scale=_rows(scale_GD),
        statistics=statistics.data_ptr(),
        out=out,
    )
    return out, statistics


def modulate_backward(
    grad_GTD: torch.Tensor, x_GTD: torch.Tensor, scale_GD: torch.Tensor, statistics: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, shift and scale, each in the dtype of what it belongs to."""
    grad_x = new_result(x_GTD.shape, x_GTD.dtype)
    grad_shift, grad_scale = (torch.empty(scale_GD.shape, dtype=scale_GD.dtype) for _ in range(2))
    native.run(
        "modulate_backward",
        x_GTD,
        x=x_GTD,
        scale=_rows(scale_GD),
        statistics=statistics.data_ptr(),
        grad_out=grad_GTD,
        grad_x=grad_x,
        grad_shift=_rows(grad_shift),
        grad_scale=_rows(grad_scale),
    )
    return grad_x, grad_shift, grad_scale


def gate_backward(
    grad_GTD: torch.Tensor, gate_GD: torch.Tensor, branch_GTD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of gate and branch, each in the dtype of what it belongs to."""
    grad_branch = new_result(branch_GTD.shape, branch_GTD.dtype)
    grad_gate = torch.empty(gate_GD.shape, dtype=gate_GD.dtype)
    native.run(
        "gate_backward",
        branch_GTD,
        branch=branch_GTD,
        gate=_rows(gate_GD),
        grad_out=grad_GTD,
        grad_branch=grad_branch,
        grad_gate=_rows(grad_gate),
    )
    return grad_gate, grad_branch


def _rows(c_GD: torch.Tensor) -> torch.Tensor:
    """One row per group, (G, D), as a batch of single frames."""
    return c_GD[:, None]
