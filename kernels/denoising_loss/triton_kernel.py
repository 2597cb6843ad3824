"""``denoising_loss`` in Triton, forward and backward (formulas in ``reference.py``)."""

from typing import Any

import torch
import triton
import triton.language as tl

from dydiff_kernels.denoising_loss import LossWeights
from dydiff_kernels.gpu import AotCase, launch, launch_shape, program_block, table_row
from dydiff_kernels.registry import Operands
from dydiff_kernels.tables import on_device


@triton.jit(do_not_specialize=["samples_row", "frames_stride", "upstream_stride"])
def _denoising_loss_kernel(
    output_ptr, target_ptr, frames_ptr, frames_stride, samples_ptr, samples_index_ptr, samples_row,
    upstream_ptr, upstream_stride, partial_ptr, grad_ptr, S, R, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one sample: its part of Σ w (output - target)² (``partial_ptr``), or the gradient (``grad_ptr``)."""
    b, _, r = program_block(R, BLOCK)
    of_sample = 1.0
    if samples_ptr is not None:
        of_sample = tl.load(samples_ptr + table_row(samples_index_ptr, samples_row, b))
    if upstream_ptr is not None:
        of_sample *= tl.load(upstream_ptr + b * upstream_stride).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for s in range(S):
        offset = (b * S + s) * R + r
        weight = tl.load(frames_ptr + b * frames_stride + s) * of_sample
        mask = r < tl.where(weight != 0.0, R, 0)  # masked frames are not read, whatever they hold
        error = tl.load(output_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if target_ptr is not None:
            error -= tl.load(target_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        error = tl.where(mask, error, 0.0)
        if grad_ptr is not None:
            grad = 2.0 * weight * error
            tl.store(grad_ptr + offset, grad.to(grad_ptr.dtype.element_ty), mask=r < R)
        else:
            total += weight * error * error
    if grad_ptr is None:
        tl.store(partial_ptr + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def _sum_kernel(x_ptr, out_ptr, S, R, BLOCK: tl.constexpr):
    """Sum of a row of R numbers, block after block in float64, so that runs repeat exactly. S is 1."""
    b = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, R, BLOCK):
        r = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + b * S * R + r, mask=r < R, other=0.0).to(tl.float64)
    tl.store(out_ptr + b, tl.sum(total, 0).to(tl.float32))


def denoising_loss(
    output: torch.Tensor, target: torch.Tensor | None, weights: LossWeights, *, upstream: torch.Tensor | None = None
) -> torch.Tensor:
    """Σ_s w_bs Σ_r (output - target)², (B,) float32; with the upstream gradient g (B,) the gradient
    2 g_b w_bs (output - target), like ``output``."""
    reads = dict(output=output, target=target, **_weight_operands(weights, output))
    if upstream is not None:
        grad = torch.empty_like(output, memory_format=torch.contiguous_format)
        is_shared = upstream.stride(0) == 0  # as a mean's gradient is: one number for all samples
        reads |= dict(upstream=upstream[:1] if is_shared else upstream, upstream_stride=int(not is_shared))
        launch(_denoising_loss_kernel, Operands(output, dict(grad=grad), dict(reads, partial=None)))
        return grad
    if not output.numel():
        return torch.zeros(output.shape[0], device=output.device)
    (num_programs,), _ = launch_shape(output)
    partial = torch.empty(output.shape[0], 1, num_programs // output.shape[0], device=output.device)
    reads |= dict(upstream=None, upstream_stride=0, grad=None)
    launch(_denoising_loss_kernel, Operands(output, dict(partial=partial), reads))
    loss = torch.empty(output.shape[0], device=output.device)
    _sum_kernel[(output.shape[0],)](partial, loss, 1, partial.shape[2], BLOCK=128)
    return loss


def _weight_operands(weights: LossWeights, output: torch.Tensor) -> dict[str, Any]:
    """Weights of frames, by the elements of one, and those of samples, as the kernel takes them."""
    frames = weights.frames / max(1, output.shape[2:].numel())
    if frames.device.type == "cpu" and frames.ndim == 1:
        on_gpu = on_device(tuple(frames.tolist()), output.device)
    else:
        on_gpu = frames.to(output.device, torch.float32)
    samples = [weights.samples] if isinstance(weights.samples, torch.Tensor) else weights.samples
    return dict(frames=on_gpu, frames_stride=output.shape[1] if frames.ndim == 2 else 0, samples=samples)


_BOTH = ("output_ptr", "target_ptr")
_WEIGHTED = ("frames_ptr", "samples_ptr", "samples_index_ptr")
AOT_CASES = [
    AotCase("loss_forward", _denoising_loss_kernel, _BOTH, (), ("frames_ptr", "partial_ptr")),
    AotCase("loss_forward_rows", _denoising_loss_kernel, _BOTH, (), (*_WEIGHTED, "partial_ptr")),
    AotCase("loss_backward", _denoising_loss_kernel, _BOTH, ("grad_ptr",), ("frames_ptr", "upstream_ptr")),
    AotCase("loss_backward_rows", _denoising_loss_kernel, _BOTH, ("grad_ptr",), (*_WEIGHTED, "upstream_ptr")),
    AotCase("loss_sum", _sum_kernel, ("x_ptr",), (), ("out_ptr",)),
]
