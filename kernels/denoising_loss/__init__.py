"""``denoising_loss``: weighted mean squared error per sample, forward and backward, nothing stored in between.

Forward reads output and target (2·N·b bytes for N elements of b bytes); backward reads both again and writes the
gradient (3·N·b). Frames of weight 0 are skipped, whatever they hold.
"""

from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable

from dydiff_kernels import native
from dydiff_kernels.checks import check_frames, check_like, check_no_grad, check_per_sample
from dydiff_kernels.denoising_loss.reference import denoising_loss_reference
from dydiff_kernels.dtypes import compute_dtype
from dydiff_kernels.outputs import new_result
from dydiff_kernels.registry import Operands, register_op


def denoising_loss(
    output: torch.Tensor,
    target: torch.Tensor,
    *,
    sample_weights: torch.Tensor | None = None,
    frame_weights: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """loss_b = w_b · Σ_s f_s mean((output - target)²) / Σ_s f_s, per sample (arXiv 2503.00951, training loss).

    Args:
        output: the network's output, (B, S, *rest), any strides.
        target: like ``output`` (storage types may differ); not differentiated.
        sample_weights: w, (B,) ≥ 0; default ones.
        frame_weights: f, (S,) or (B, S), ≥ 0 with a positive sum; 0 masks a frame, as of history; default ones.
        backend: ``auto | triton | cpp | reference``.

    Returns:
        (B,) float32 (float64 for float64 tensors); its ``mean()`` is the loss of the batch. Differentiable once, in
        ``output``; the gradient has the dtype of ``output``.

    Raises:
        ValueError: wrong shape, dtype, device, length or range, or a target that requires a gradient.
    """
    op = "denoising_loss"
    check_frames(op, "output", output)
    check_like(op, "target", target, "output", output)
    check_no_grad(op, "target", target)
    weights = _weights(op, output, sample_weights, frame_weights)
    run = _OP.select(backend, (output, target))
    if run is _OP.reference:
        return run(output, target, weights)
    return _DenoisingLossFunction.apply(output, target, weights, run)


def _weights(
    op: str, output: torch.Tensor, sample_weights: torch.Tensor | None, frame_weights: torch.Tensor | None
) -> torch.Tensor:
    """w_b f_s / (Σ_s f_s · elements per frame), (B, S), in the dtype of the calculation."""
    batch, frames = output.shape[:2]
    shape = (batch, frames)
    f = torch.ones(frames, dtype=torch.float64) if frame_weights is None else frame_weights.detach().double()
    if f.shape not in ((frames,), shape):
        raise ValueError(f"{op}: frame_weights has shape {tuple(f.shape)}; expected ({frames},) or {shape}")
    if f.device.type == "cpu" and f.numel() and not (f.min() >= 0 and f.sum(-1).min() > 0):
        raise ValueError(f"{op}: frame_weights are {f.tolist()}; expected no negative value and a positive sum")
    f = f.to(output.device)
    weights = (f / f.sum(-1, keepdim=True)).expand(shape) / max(1, output.shape[2:].numel())
    if sample_weights is not None:
        w = check_per_sample(op, "sample_weights", sample_weights, batch, "[0, inf)")
        weights = weights * w.to(output.device)[:, None]
    return weights.to(compute_dtype(output)).contiguous()


class _DenoisingLossFunction(torch.autograd.Function):
    """The kernels' loss; backward reads output and target again and stores nothing but them."""

    @staticmethod
    def forward(ctx, output: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, run: Callable):
        ctx.save_for_backward(output, target, weights)
        ctx.run = run
        return run(output, target, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        output, target, weights = ctx.saved_tensors
        scaled = (weights * grad.to(weights.dtype)[:, None]).contiguous()
        return ctx.run(output, target, scaled, gradient=True), None, None, None


def _run_cpp(
    output: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, *, gradient: bool = False
) -> torch.Tensor:
    """Σ_s w_bs Σ_r (output - target)², (B,) float32, or its gradient 2 w_bs (output - target) like ``output``."""
    reads = dict(output=output, target=target, weights=weights)
    if gradient:
        grad = new_result(output.shape, output.dtype)
        native.run("loss_backward", Operands(output, dict(grad=grad), reads))
        return grad
    loss = torch.empty(output.shape[0], dtype=torch.float64)
    native.run("loss_forward", Operands(output, {}, dict(reads, loss=loss.data_ptr())))
    return loss.float()


_OP = register_op(
    "denoising_loss",
    reference=denoising_loss_reference,
    cpp=_run_cpp,
    triton="dydiff_kernels.denoising_loss.triton_kernel:denoising_loss",
    differentiable=True,
    aot_cases="dydiff_kernels.denoising_loss.triton_kernel:AOT_CASES",
    benchmarks="dydiff_kernels.denoising_loss.benchmark:BENCHMARKS",
)
