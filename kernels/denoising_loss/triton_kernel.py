"""``denoising_loss`` in Triton, forward and backward (formulas in ``reference.py``)."""

import torch
import triton
import triton.language as tl

from dydiff_kernels.gpu import AotCase, launch, launch_shape, program_block
from dydiff_kernels.registry import Operands


@triton.jit
def _denoising_loss_kernel(output_ptr, target_ptr, weights_ptr, partial_ptr, grad_ptr, S, R, BLOCK: tl.constexpr):
    """One block of one sample: its part of Σ w (output - target)² (``partial_ptr``), or the gradient (``grad_ptr``)."""
    b, _, r = program_block(R, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for s in range(S):
        offset = (b * S + s) * R + r
        weight = tl.load(weights_ptr + b * S + s)
        mask = r < tl.where(weight != 0.0, R, 0)  # masked frames are not read, whatever they hold
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


def denoising_loss(
    output: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, *, gradient: bool = False
) -> torch.Tensor:
    """Σ_s w_bs Σ_r (output - target)², (B,) float32, or its gradient 2 w_bs (output - target) like ``output``.

    Blocks add up in float64 and in order, so runs repeat exactly.
    """
    reads = dict(output=output, target=target, weights=weights)
    if gradient:
        grad = torch.empty_like(output, memory_format=torch.contiguous_format)
        launch(_denoising_loss_kernel, Operands(output, dict(grad=grad), dict(reads, partial=None)))
        return grad
    if not output.numel():
        return torch.zeros(output.shape[0], device=output.device)
    partial = torch.empty(launch_shape(output)[0], dtype=torch.float32, device=output.device)
    launch(_denoising_loss_kernel, Operands(output, dict(partial=partial), dict(reads, grad=None)))
    return partial.view(output.shape[0], -1).double().sum(1).float()


AOT_CASES = [
    AotCase("loss_forward", _denoising_loss_kernel, ("output_ptr", "target_ptr"), (), ("weights_ptr", "partial_ptr")),
    AotCase("loss_backward", _denoising_loss_kernel, ("output_ptr", "target_ptr"), ("grad_ptr",), ("weights_ptr",)),
]
