"""Binding of the C++ loss, forward and backward."""

from typing import TYPE_CHECKING

import torch

from dydiff_kernels import native
from dydiff_kernels.memory import new_result

if TYPE_CHECKING:
    from dydiff_kernels.denoising_loss import CounterTarget


def loss_forward(output: torch.Tensor, target: "torch.Tensor | CounterTarget", weights: torch.Tensor) -> torch.Tensor:
    """Σ_s w_bs Σ_r (output - target)², (B,) float32; ``weights`` (B, S) float32."""
    loss = torch.empty(output.shape[0], dtype=torch.float64)
    args, alive = _loss_args(output, target, weights)
    args.loss = loss.data_ptr()
    native.cpp_module().loss_forward(args, native.num_threads())
    del alive
    return loss.float()


def loss_backward(output: torch.Tensor, target: "torch.Tensor | CounterTarget", weights: torch.Tensor) -> torch.Tensor:
    """2 w_bs (output - target), (B, S, *rest) in the dtype of ``output``."""
    grad = new_result(output.shape, output.dtype, output.device)
    args, alive = _loss_args(output, target, weights)
    args.grad = native.frame_view(grad)
    native.cpp_module().loss_backward(args, native.num_threads())
    del alive
    return grad


def _loss_args(output: torch.Tensor, target: "torch.Tensor | CounterTarget", weights: torch.Tensor):
    """Arguments for the extension, and the tensors that must stay alive while it runs."""
    from dydiff_kernels.denoising_loss import noise_coefficients

    output = native.dense_frames(output)
    args = native.cpp_module().LossArgs()
    args.shape = native.frame_shape(output)
    args.output = native.frame_view(output)
    args.weights = weights.data_ptr()
    if isinstance(target, torch.Tensor):
        target = native.dense_frames(target)
        args.target = native.frame_view(target)
        return args, (output, weights, target)
    table = native.float_table(noise_coefficients(target))
    args.coefficients = table.data_ptr()
    args.noise, index = native.noise_source(target.noise)
    return args, (output, weights, table, index)
