"""``denoising_loss``: weighted mean squared error per sample, forward and backward, nothing stored in between.

Forward reads output and target (2·N·b bytes for N elements of b bytes); backward reads both again and writes the
gradient (3·N·b). Frames of weight 0 are skipped, whatever they hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.autograd.function import once_differentiable

from dydiff_kernels import native
from dydiff_kernels.checks import check_frames, check_like, check_no_grad, check_per_sample
from dydiff_kernels.denoising_loss.reference import denoising_loss_reference
from dydiff_kernels.dtypes import compute_dtype
from dydiff_kernels.outputs import new_result
from dydiff_kernels.registry import Operands, register_op
from dydiff_kernels.tables import Numbers, TableRows, of_samples


def denoising_loss(
    output: torch.Tensor,
    target: torch.Tensor | Literal["zero"],
    *,
    sample_weights: torch.Tensor | TableRows[Numbers] | None = None,
    frame_weights: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """loss_b = w_b · Σ_s f_s mean((output - target)²) / Σ_s f_s, per sample (arXiv 2503.00951, training loss).

    Args:
        output: the network's output, (B, S, *rest), any strides.
        target: like ``output`` (storage types may differ); not differentiated. ``"zero"``: ``output`` is the
            error itself.
        sample_weights: w, (B,) ≥ 0, or rows of a table of them; default ones.
        frame_weights: f, (S,) or (B, S), ≥ 0 with a positive sum; 0 masks a frame, as of history; default ones. (S,) on
            the CPU serves tensors on any device, which is sent them once.
        backend: ``auto | triton | cpp | reference``.

    Returns:
        (B,) float32 (float64 for float64 tensors); its ``mean()`` is the loss of the batch. Differentiable once, in
        ``output``; the gradient has the dtype of ``output``.

    Raises:
        ValueError: wrong shape, dtype, device, length or range, or a target that requires a gradient.
    """
    op = "denoising_loss"
    check_frames(op, "output", output)
    goal: torch.Tensor | None = None
    if not (isinstance(target, str) and target == "zero"):
        check_like(op, "target", target, "output", output)
        check_no_grad(op, "target", target)
        goal = target
    weights = _checked_weights(op, output, sample_weights, frame_weights)
    run = _OP.select(backend, (output, goal))
    if run is _OP.reference:
        return run(output, goal, weights.matrix(output))
    return _DenoisingLossFunction.apply(output, goal, weights, run)


@dataclass(eq=False)
class LossWeights:
    """Weights as a call gave them; kernels that multiply them themselves take the parts."""

    frames: torch.Tensor
    """f / Σ f, (S,) or (B, S) float64."""
    samples: torch.Tensor | TableRows[Numbers] | None
    """w, (B,) float64."""

    def matrix(self, output: torch.Tensor) -> torch.Tensor:
        """w_b f_s / (Σ_s f_s · elements per frame), (B, S), in the dtype of the calculation."""
        weights = self.frames.to(output.device).expand(output.shape[:2]) / max(1, output.shape[2:].numel())
        if self.samples is not None:
            samples = Numbers(self.samples) if isinstance(self.samples, torch.Tensor) else self.samples
            weights = weights * of_samples(samples, output).values.to(output.device)[:, None]
        return weights.to(compute_dtype(output)).contiguous()


def _checked_weights(
    op: str,
    output: torch.Tensor,
    sample_weights: torch.Tensor | TableRows[Numbers] | None,
    frame_weights: torch.Tensor | None,
) -> LossWeights:
    batch, frames = output.shape[:2]
    f = torch.ones(frames, dtype=torch.float64) if frame_weights is None else frame_weights.detach().double()
    if f.shape not in ((frames,), (batch, frames)):
        raise ValueError(f"{op}: frame_weights has shape {tuple(f.shape)}; expected ({frames},) or {(batch, frames)}")
    if f.device.type == "cpu" and f.numel() and not (f.min() >= 0 and f.sum(-1).min() > 0):
        raise ValueError(f"{op}: frame_weights are {f.tolist()}; expected no negative value and a positive sum")
    samples = sample_weights
    if isinstance(sample_weights, TableRows):
        samples = sample_weights.checked(op, batch)
    elif sample_weights is not None:
        samples = check_per_sample(op, "sample_weights", sample_weights, batch, "[0, inf)")
    return LossWeights(f / f.sum(-1, keepdim=True), samples)


class _DenoisingLossFunction(torch.autograd.Function):
    """The kernels' loss; backward reads output and target again and stores nothing but them."""

    @staticmethod
    def forward(ctx, output: torch.Tensor, target: torch.Tensor | None, weights: LossWeights, run: Callable):
        ctx.save_for_backward(output, target)
        ctx.weights, ctx.run = weights, run
        return run(output, target, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        output, target = ctx.saved_tensors
        return ctx.run(output, target, ctx.weights, upstream=grad), None, None, None


def _run_cpp(
    output: torch.Tensor, target: torch.Tensor | None, weights: LossWeights, *, upstream: torch.Tensor | None = None
) -> torch.Tensor:
    """Σ_s w_bs Σ_r (output - target)², (B,) float32; with the upstream gradient g (B,) the gradient
    2 g_b w_bs (output - target), like ``output``."""
    matrix = weights.matrix(output)
    if target is None:
        target = output.new_zeros(output.shape[2:]).expand(output.shape)  # one frame for all
    if upstream is not None:
        grad = new_result(output.shape, output.dtype)
        scaled = (matrix * upstream.to(matrix.dtype)[:, None]).contiguous()
        reads = dict(output=output, target=target, weights=scaled)
        native.run("loss_backward", Operands(output, dict(grad=grad), reads))
        return grad
    loss = torch.empty(output.shape[0], dtype=torch.float64)
    operands: dict[str, object] = dict(output=output, target=target, weights=matrix, loss=loss.data_ptr())
    native.run("loss_forward", Operands(output, {}, operands))
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
