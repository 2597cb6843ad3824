"""``modulated_norm`` and ``gated_residual``: what surrounds the layer of an adaLN-Zero branch (Peebles & Xie 2023).

    branch = layer(modulated_norm(x, shift, scale));   x = gated_residual(x, gate, branch)

Least bytes for N elements of b bytes: modulated_norm reads x and writes y (2·N·b); its backward pass reads x and dy
and writes dx (3·N·b); that of gated_residual reads dy and the branch and writes the branch's gradient (3·N·b). The sums
that are the gradients of shift, scale and gate cost eager torch more passes; here they fall out of the same one.

On CPUs the C++ kernels run. On GPUs torch's own operations do: ``torch.compile`` fuses them, and no kernel of ours has
been shown to beat it there (docs/kernels.md).
"""

from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable

from dydiff_kernels.modulation import cpp
from dydiff_kernels.modulation.reference import gated_residual_reference, modulated_norm_reference
from dydiff_kernels.native import dense_frames
from dydiff_kernels.registry import Op, register_op


def modulated_norm(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, epsilon: float = 1e-6, backend: str = "auto"
) -> torch.Tensor:
    """y = norm(x)·(1 + scale) + shift, the norm being LayerNorm over D without parameters. Differentiable once.

    Args:
        x: tokens (B, S, N, D), float32, bfloat16 or float16; float64 runs on the reference.
        shift: (B, S, 1, D) or (B, 1, 1, D): one row for the tokens of a frame, or of a sample.
        scale: like ``shift``.
        epsilon: added to the variance.
        backend: ``auto | cpp | reference``.

    Returns:
        Like ``x``.

    Raises:
        ValueError: shapes that don't belong together, or a backend that can't run here.
    """
    for name, condition in (("shift", shift), ("scale", scale)):
        _check_condition("modulated_norm", name, condition, x)
    return _select(_NORM, backend, x, shift, scale)(x, shift, scale, epsilon)


def gated_residual(x: torch.Tensor, gate: torch.Tensor, branch: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """x + gate·branch. Differentiable once.

    Args:
        x: tokens (B, S, N, D).
        gate: (B, S, 1, D) or (B, 1, 1, D).
        branch: like ``x``.
        backend: ``auto | cpp | reference``.

    Returns:
        Like ``x``.

    Raises:
        ValueError: shapes that don't belong together, or a backend that can't run here.
    """
    _check_condition("gated_residual", "gate", gate, x)
    if branch.shape != x.shape:
        raise ValueError(
            f"gated_residual: branch has shape {tuple(branch.shape)}; expected {tuple(x.shape)}, that of x"
        )
    return _select(_GATE, backend, x, gate, branch)(x, gate, branch)


def _check_condition(op: str, name: str, condition: torch.Tensor, x: torch.Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}; expected (B, S, N, D)")
    B, S, _, D = x.shape
    if tuple(condition.shape) not in ((B, S, 1, D), (B, 1, 1, D)):
        raise ValueError(
            f"{op}: {name} has shape {tuple(condition.shape)}; expected {(B, S, 1, D)} or {(B, 1, 1, D)} for x of "
            f"shape {tuple(x.shape)}"
        )


def _select(op: Op, backend: str, x: torch.Tensor, *others: torch.Tensor) -> Callable[..., torch.Tensor]:
    """What runs. Mixed dtypes, wide or no tokens, and code that is being compiled take the reference."""
    fits = all(t.dtype == x.dtype for t in others) and x.shape[-1] <= cpp.MAX_CHANNELS
    if torch.compiler.is_compiling() or x.numel() == 0 or (backend == "auto" and not fits):
        return op.reference
    if backend == "cpp" and not fits:
        raise ValueError(
            f"{op.name}: backend='cpp' needs one dtype and at most {cpp.MAX_CHANNELS} channels; x has "
            f"{tuple(x.shape)}, dtypes are {[str(t.dtype) for t in (x, *others)]}; use backend='auto'"
        )
    return op.select(backend, (x, *others))


def _groups(x: torch.Tensor, condition: torch.Tensor) -> tuple[int, int, int]:
    """(G, T, D): tokens that share a row of the condition form a group."""
    B, S, N, D = x.shape
    return (B, S * N, D) if condition.shape[1] == 1 else (B * S, N, D)


def _rows(condition: torch.Tensor) -> torch.Tensor:
    """(B, S or 1, 1, D) as (G, D) with dense rows; no copy for a chunk of a linear layer's output."""
    return dense_frames(condition.reshape(-1, 1, condition.shape[-1]))[:, 0]


class _ModulatedNormFunction(torch.autograd.Function):
    """The kernel's modulated norm; backward keeps x and two numbers per token."""

    @staticmethod
    def forward(ctx, x, shift, scale, epsilon):
        groups = x.contiguous().view(_groups(x, shift))
        out, statistics = cpp.modulate(groups, _rows(shift), _rows(scale), epsilon)
        ctx.save_for_backward(x, shift, scale, statistics)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, shift, scale, statistics = ctx.saved_tensors
        sizes = _groups(x, shift)
        grads = cpp.modulate_backward(
            grad.contiguous().view(sizes), x.contiguous().view(sizes), _rows(scale), statistics
        )
        return *(g.view(t.shape) for g, t in zip(grads, (x, shift, scale), strict=True)), None


class _GatedResidualFunction(torch.autograd.Function):
    """torch's own forward pass, which is one pass; the kernel's backward."""

    @staticmethod
    def forward(ctx, x, gate, branch):
        ctx.save_for_backward(gate, branch)
        return gated_residual_reference(x, gate, branch)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, branch = ctx.saved_tensors
        sizes = _groups(branch, gate)
        grad_gate, grad_branch = cpp.gate_backward(
            grad.contiguous().view(sizes), _rows(gate), branch.contiguous().view(sizes)
        )
        return grad, grad_gate.view(gate.shape), grad_branch.view(branch.shape)


_NORM = register_op(
    "modulated_norm",
    reference=modulated_norm_reference,
    cpp=_ModulatedNormFunction.apply,
    differentiable=True,
    benchmarks="dydiff_kernels.modulation.benchmark:BENCHMARKS",
)
_GATE = register_op(
    "gated_residual", reference=gated_residual_reference, cpp=_GatedResidualFunction.apply, differentiable=True
)
