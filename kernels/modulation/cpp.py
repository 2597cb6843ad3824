"""Binding of the C++ modulation, forward and backward. Letters: G groups, T tokens of a group, D channels."""

import torch

from dydiff_kernels import native
from dydiff_kernels.memory import new_result

MAX_CHANNELS = 4096
"""MAX_CHANNELS of csrc/args.h: a token's channels fill at most a row."""


def modulate(
    x_GTD: torch.Tensor, shift_GD: torch.Tensor, scale_GD: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y (G, T, D) in the dtype of x, statistics (G, T, 2) float32 for the backward pass)."""
    out = new_result(x_GTD.shape, x_GTD.dtype, x_GTD.device)
    statistics = torch.empty(*x_GTD.shape[:2], 2)
    args = _modulation_args(x_GTD, shift_GD, scale_GD, statistics, epsilon)
    args.out = native.frame_view(out)
    native.cpp_module().modulate(args, native.num_threads())
    return out, statistics


def modulate_backward(
    grad_GTD: torch.Tensor,
    x_GTD: torch.Tensor,
    shift_GD: torch.Tensor,
    scale_GD: torch.Tensor,
    statistics: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, shift and scale, each in the dtype of what it belongs to."""
    grad_x = new_result(x_GTD.shape, x_GTD.dtype, x_GTD.device)
    grad_shift, grad_scale = (torch.empty(c.shape, dtype=c.dtype) for c in (shift_GD, scale_GD))
    args = _modulation_args(x_GTD, shift_GD, scale_GD, statistics, 0.0)
    args.grad_out, args.grad_x = native.frame_view(grad_GTD), native.frame_view(grad_x)
    args.grad_shift, args.grad_scale = _row_view(grad_shift), _row_view(grad_scale)
    native.cpp_module().modulate_backward(args, native.num_threads())
    return grad_x, grad_shift, grad_scale


def gate_backward(
    grad_GTD: torch.Tensor, gate_GD: torch.Tensor, branch_GTD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of gate and branch, each in the dtype of what it belongs to."""
    grad_branch = new_result(branch_GTD.shape, branch_GTD.dtype, branch_GTD.device)
    grad_gate = torch.empty(gate_GD.shape, dtype=gate_GD.dtype)
    args = native.cpp_module().GateArgs()
    args.shape = native.frame_shape(branch_GTD)
    args.branch, args.gate = native.frame_view(branch_GTD), _row_view(gate_GD)
    args.grad_out, args.grad_branch = native.frame_view(grad_GTD), native.frame_view(grad_branch)
    args.grad_gate = _row_view(grad_gate)
    native.cpp_module().gate_backward(args, native.num_threads())
    return grad_gate, grad_branch


def _modulation_args(x, shift, scale, statistics, epsilon):
    args = native.cpp_module().ModulationArgs()
    args.shape, args.epsilon = native.frame_shape(x), epsilon
    args.x, args.shift, args.scale = native.frame_view(x), _row_view(shift), _row_view(scale)
    args.statistics = statistics.data_ptr()
    return args


def _row_view(c_GD: torch.Tensor):
    """One row per group, (G, D) with dense rows, as a batch of single frames."""
    return native.frame_view(c_GD[:, None])
