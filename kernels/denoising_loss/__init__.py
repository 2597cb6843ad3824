"""``denoising_loss``: weighted mean squared error per sample, forward and backward, nothing stored in between.

Forward reads output and target (2·N·b bytes); backward reads both again and writes the gradient (3·N·b). With a
``CounterTarget`` the target is never in memory: N·b and 2·N·b. Frames of weight 0 are skipped, whatever they hold.
"""

from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable

from dydiff_kernels.backends import choose_backend
from dydiff_kernels.checks import (
    check_frames,
    check_like,
    check_no_grad,
    check_noise,
    check_per_sample,
)
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.denoising_loss import cpp
from dydiff_kernels.denoising_loss.reference import denoising_loss_reference
from dydiff_kernels.dtypes import compute_dtype
from dydiff_kernels.frame_mix.reference import frame_coefficients, frame_mix_reference
from dydiff_kernels.noise.reference import draw_noise


@dataclass(frozen=True)
class CounterTarget:
    """The eps target ε̃ by name: the noise of ``add_noise``, drawn again by the loss instead of read from memory.

    Args:
        noise: the ``NoiseCounter`` that ``add_noise`` was given.
        gamma_bar: γ̄_t (B,) for dependent noise (ε̃ = D_γ̄ ε); None for independent noise (ε̃ = ε).
    """

    noise: NoiseCounter
    gamma_bar: torch.Tensor | None = None


def denoising_loss(
    output: torch.Tensor,
    target: torch.Tensor | CounterTarget,
    *,
    sample_weights: torch.Tensor | None = None,
    frame_weights: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """loss_b = w_b · Σ_s f_s mean((output - target)²) / Σ_s f_s, per sample (arXiv 2503.00951, training loss).

    Args:
        output: the network's output, (B, S, *rest), any strides.
        target: like ``output`` (storage types may differ), or a ``CounterTarget``; not differentiated.
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
    _check_target(op, output, target)
    weights = _weights(op, output, sample_weights, frame_weights)
    dtypes = (output.dtype, *((target.dtype,) if isinstance(target, torch.Tensor) else ()))
    chosen = choose_backend(op, backend, output.device, dtypes)
    if chosen == "reference":
        return denoising_loss_reference(output, target_tensor(target, output), weights)
    return _DenoisingLossFunction.apply(output, target, weights, chosen)


def target_tensor(target: torch.Tensor | CounterTarget, output: torch.Tensor) -> torch.Tensor:
    """The target as a tensor like ``output``; a ``CounterTarget`` is drawn and mixed by the reference."""
    if isinstance(target, torch.Tensor):
        return target
    noise = draw_noise(target.noise, output)
    return noise if target.gamma_bar is None else frame_mix_reference(noise, target.gamma_bar)


def noise_coefficients(target: CounterTarget) -> list[torch.Tensor]:
    """Columns of the kernels' table for the noise of a ``CounterTarget``: √γ̄ and √(1-γ̄), (B,) float64."""
    gamma_bar = target.gamma_bar
    if gamma_bar is None:
        gamma_bar = torch.ones(target.noise.sample_index.shape, dtype=torch.float64)
    return list(frame_coefficients(gamma_bar))


def _check_target(op: str, output: torch.Tensor, target: torch.Tensor | CounterTarget) -> None:
    if isinstance(target, CounterTarget):
        check_noise(op, "target.noise", target.noise, "output", output)
        if target.gamma_bar is not None:
            check_per_sample(op, "target.gamma_bar", target.gamma_bar, output.shape[0])
    elif isinstance(target, torch.Tensor):
        check_like(op, "target", target, "output", output)
        check_no_grad(op, "target", target)
    else:
        raise ValueError(f"{op}: target is {type(target).__name__}; expected a tensor or a CounterTarget")


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
        w = check_per_sample(op, "sample_weights", sample_weights, batch, high=float("inf"))
        weights = weights * w.to(output.device)[:, None]
    return weights.to(compute_dtype(output)).contiguous()


class _DenoisingLossFunction(torch.autograd.Function):
    """The kernels' loss; backward reads output and target again and stores nothing but them."""

    @staticmethod
    def forward(ctx, output, target, weights, backend):
        is_tensor = isinstance(target, torch.Tensor)
        ctx.save_for_backward(output, weights, target if is_tensor else None)
        ctx.counter_target, ctx.backend = None if is_tensor else target, backend
        return _kernels(backend).loss_forward(output, target, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        output, weights, target = ctx.saved_tensors
        scaled = (weights * grad.to(weights.dtype)[:, None]).contiguous()
        target = ctx.counter_target if target is None else target
        return _kernels(ctx.backend).loss_backward(output, target, scaled), None, None, None


def _kernels(backend: str):
    if backend == "triton":
        from dydiff_kernels.denoising_loss import triton_kernel

        return triton_kernel
    return cpp
