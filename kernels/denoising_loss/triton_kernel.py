"""``denoising_loss`` in Triton, forward and backward (formulas in csrc/denoising_loss.h)."""

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from dydiff_kernels.frame_mix.triton_kernel import mix_frame
from dydiff_kernels.gpu import (
    coefficient_table,
    contiguous,
    launch_shape,
    noise_arguments,
    offset_in_sample,
    program_block,
)
from dydiff_kernels.noise.triton_kernel import draw_normals

if TYPE_CHECKING:
    from dydiff_kernels.denoising_loss import CounterTarget


@triton.jit(do_not_specialize=["noise_key0", "noise_key1", "noise_step", "noise_stream"])
def _denoising_loss_kernel(
    output_ptr,
    target_ptr,
    noise_ptr,
    noise_index_ptr,
    noise_key0,
    noise_key1,
    noise_step,
    noise_stream,
    table_ptr,
    weights_ptr,
    partial_ptr,
    grad_ptr,
    S,
    R,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One block of one sample: its part of Σ w (output - target)² (``partial_ptr``), or the gradient (``grad_ptr``)."""
    b, start, r = program_block(R, BLOCK)
    if target_ptr is None:
        keep, carry = tl.load(table_ptr + 2 * b), tl.load(table_ptr + 2 * b + 1)
        index = tl.load(noise_index_ptr + b)
    target = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for s in range(S):
        offset = (b * S + s) * R + r
        weight = tl.load(weights_ptr + b * S + s)
        mask = r < tl.where(weight != 0.0, R, 0)  # masked frames are not read, whatever they hold
        if target_ptr is None:
            first = offset_in_sample(s, R, start)
            noise = draw_normals(index, noise_key0, noise_key1, noise_step, noise_stream, first, BLOCK, ALIGNED)
            target = mix_frame(s, keep, carry, noise, target)
        else:
            target = tl.load(target_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        output = tl.load(output_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        error = tl.where(mask, output - target, 0.0)
        if grad_ptr is not None:
            grad = 2.0 * weight * error
            tl.store(grad_ptr + offset, grad.to(grad_ptr.dtype.element_ty), mask=r < R)
        else:
            total += weight * error * error
    if grad_ptr is None:
        tl.store(partial_ptr + tl.program_id(0), tl.sum(total, 0))


def loss_forward(output: torch.Tensor, target: "torch.Tensor | CounterTarget", weights: torch.Tensor) -> torch.Tensor:
    """Σ_s w_bs Σ_r (output - target)², (B,) float32. Blocks add up in float64 and in order, so runs repeat exactly."""
    if not output.numel():
        return torch.zeros(output.shape[0], dtype=torch.float32, device=output.device)
    grid, sizes = launch_shape(output)
    partial = torch.empty(grid, dtype=torch.float32, device=output.device)
    _denoising_loss_kernel[grid](**_arguments(output, target, weights), partial_ptr=partial, grad_ptr=None, **sizes)
    return partial.view(output.shape[0], -1).double().sum(1).float()


def loss_backward(output: torch.Tensor, target: "torch.Tensor | CounterTarget", weights: torch.Tensor) -> torch.Tensor:
    """2 w_bs (output - target), (B, S, *rest) in the dtype of ``output``."""
    grad = torch.empty_like(output, memory_format=torch.contiguous_format)
    if output.numel():
        grid, sizes = launch_shape(output)
        _denoising_loss_kernel[grid](**_arguments(output, target, weights), partial_ptr=None, grad_ptr=grad, **sizes)
    return grad


def _arguments(output: torch.Tensor, target: "torch.Tensor | CounterTarget", weights: torch.Tensor) -> dict[str, Any]:
    from dydiff_kernels.denoising_loss import noise_coefficients

    is_tensor = isinstance(target, torch.Tensor)
    table = None if is_tensor else coefficient_table(noise_coefficients(target), output.device)
    return dict(
        output_ptr=contiguous(output),
        target_ptr=contiguous(target) if is_tensor else None,
        table_ptr=table,
        weights_ptr=weights,
        ALIGNED=output.shape[2:].numel() % 4 == 0,
        **noise_arguments(None if is_tensor else target.noise, output.device),
    )
