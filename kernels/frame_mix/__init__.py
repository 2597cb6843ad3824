"""``frame_mix`` and ``frame_unmix``: the Dynamics operator D_γ along frames (arXiv 2503.00951) and its inverse.

Both are linear in the frames, so the backward pass of each is its transpose, the same filter run from the last frame
to the first; that is an op here too, which makes the ops differentiable any number of times.
"""

import enum

import torch

from dydiff_kernels.backends import choose_backend
from dydiff_kernels.checks import check_frames, check_per_sample
from dydiff_kernels.frame_mix import cpp, reference


class FrameFilter(enum.IntEnum):
    """The four linear filters along frames; the numbers are those of ``csrc/args.h``."""

    MIX = 0
    UNMIX = 1
    MIX_TRANSPOSED = 2
    UNMIX_TRANSPOSED = 3

    @property
    def transposed(self) -> "FrameFilter":
        """The filter of the backward pass."""
        return FrameFilter((self + 2) % 4)


_REFERENCES = {
    FrameFilter.MIX: reference.frame_mix_reference,
    FrameFilter.UNMIX: reference.frame_unmix_reference,
    FrameFilter.MIX_TRANSPOSED: reference.frame_mix_transposed_reference,
    FrameFilter.UNMIX_TRANSPOSED: reference.frame_unmix_transposed_reference,
}


def frame_mix(
    x: torch.Tensor, gamma_bar: torch.Tensor, *, backend: str = "auto", inplace: bool = False
) -> torch.Tensor:
    """y = D_γ̄ x:  y⁰ = x⁰,  yˢ = √γ̄ xˢ + √(1-γ̄) yˢ⁻¹ (arXiv 2503.00951, the Dynamics operator).

    Args:
        x: (B, S, *rest), S ≥ 1, float32, bfloat16, float16 or float64, any strides.
        gamma_bar: (B,) float64 or float32 in [0, 1], one level per sample; not differentiated.
        backend: ``auto | triton | cpp | reference``.
        inplace: overwrite and return ``x``.

    Returns:
        (B, S, *rest) in the dtype of ``x``; differentiable in ``x``.

    Raises:
        ValueError: wrong shape, dtype, device or length, ``gamma_bar`` out of range, or ``backend`` cannot run here.
    """
    return _filter("frame_mix", FrameFilter.MIX, x, gamma_bar, backend, inplace)


def frame_unmix(
    y: torch.Tensor, gamma_bar: torch.Tensor, *, backend: str = "auto", inplace: bool = False
) -> torch.Tensor:
    """x = D_γ̄⁻¹ y:  x⁰ = y⁰,  xˢ = (yˢ - √(1-γ̄) yˢ⁻¹) / √γ̄.

    Arguments, result and errors as for ``frame_mix``, but ``gamma_bar`` must not be 0, where D has no inverse. Rounding
    of y is amplified by up to (1 + √(1-γ̄))/√γ̄.
    """
    return _filter("frame_unmix", FrameFilter.UNMIX, y, gamma_bar, backend, inplace)


def _filter(op: str, kind: FrameFilter, x: torch.Tensor, gamma_bar: torch.Tensor, backend: str, inplace: bool):
    check_frames(op, "x" if kind == FrameFilter.MIX else "y", x)
    gamma_bar = check_per_sample(op, "gamma_bar", gamma_bar, x.shape[0])
    if kind == FrameFilter.UNMIX and gamma_bar.device.type == "cpu" and (gamma_bar == 0).any():
        raise ValueError(f"{op}: gamma_bar holds 0, where mixing has no inverse; expected values in (0, 1]")
    chosen = choose_backend(op, backend, x.device, (x.dtype,))
    return _FrameFilterFunction.apply(x, gamma_bar, kind, chosen, inplace)


class _FrameFilterFunction(torch.autograd.Function):
    """Any of the four filters; its backward is the transposed one, through this same class."""

    @staticmethod
    def forward(ctx, x, gamma_bar, kind, backend, inplace):
        ctx.save_for_backward(gamma_bar)
        ctx.kind, ctx.backend = kind, backend
        if inplace:
            ctx.mark_dirty(x)
        return _run(x, gamma_bar, kind, backend, inplace)

    @staticmethod
    def backward(ctx, grad):
        (gamma_bar,) = ctx.saved_tensors
        grad_x = _FrameFilterFunction.apply(grad, gamma_bar, ctx.kind.transposed, ctx.backend, False)
        return grad_x, None, None, None, None


def _run(x: torch.Tensor, gamma_bar: torch.Tensor, kind: FrameFilter, backend: str, inplace: bool) -> torch.Tensor:
    if backend == "reference":
        result = _REFERENCES[kind](x, gamma_bar)
        return x.copy_(result) if inplace else result
    if backend == "triton":
        from dydiff_kernels.frame_mix import triton_kernel

        return triton_kernel.frame_filter(x, gamma_bar, kind, inplace)
    return cpp.frame_filter(x, gamma_bar, kind, inplace)
