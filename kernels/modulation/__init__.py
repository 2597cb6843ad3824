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
from torch import Tensor
from torch.autograd.function import once_differentiable

from dydiff_kernels import native
from dydiff_kernels.modulation.reference import gated_residual_reference, modulated_norm_reference
from dydiff_kernels.outputs import new_result
from dydiff_kernels.registry import Op, Operands, register_op

MAX_CHANNELS = 4096
"""ROW of csrc/rows.h: a token's channels fill at most a row."""


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, *, epsilon: float = 1e-6, backend: str = "auto") -> Tensor:
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
        ValueError: shapes or devices that don't belong together, or a backend that can't run here.
    """
    for name, condition in (("shift", shift), ("scale", scale)):
        _check_condition("modulated_norm", name, condition, x)
    return _select(_NORM, backend, x, shift, scale)(x, shift, scale, epsilon)


def gated_residual(x: Tensor, gate: Tensor, branch: Tensor, *, backend: str = "auto") -> Tensor:
    """x + gate·branch. Differentiable once.

    Args:
        x: tokens (B, S, N, D).
        gate: (B, S, 1, D) or (B, 1, 1, D).
        branch: like ``x``.
        backend: ``auto | cpp | reference``.

    Returns:
        Like ``x``.

    Raises:
        ValueError: shapes or devices that don't belong together, or a backend that can't run here.
    """
    _check_condition("gated_residual", "gate", gate, x)
    if branch.shape != x.shape:
        raise ValueError(
            f"gated_residual: branch has shape {tuple(branch.shape)}; expected {tuple(x.shape)}, that of x"
        )
    _check_device("gated_residual", "branch", branch, x)
    return _select(_GATE, backend, x, gate, branch)(x, gate, branch)


def _check_condition(op: str, name: str, condition: Tensor, x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}; expected (B, S, N, D)")
    B, S, _, D = x.shape
    if tuple(condition.shape) not in ((B, S, 1, D), (B, 1, 1, D)):
        raise ValueError(
            f"{op}: {name} has shape {tuple(condition.shape)}; expected {(B, S, 1, D)} or {(B, 1, 1, D)} for x of "
            f"shape {tuple(x.shape)}"
        )
    _check_device(op, name, condition, x)


def _check_device(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}; expected {x.device}, where x is")


def _select(op: Op, backend: str, x: Tensor, *others: Tensor) -> Callable[..., Tensor]:
    """What runs. Mixed dtypes, wide or no tokens, and code that is being compiled take the reference."""
    fits = all(t.dtype == x.dtype for t in others) and x.shape[-1] <= MAX_CHANNELS
    if torch.compiler.is_compiling() or x.numel() == 0 or (backend == "auto" and not fits):
        return op.reference
    if backend == "cpp" and not fits:
        raise ValueError(
            f"{op.name}: backend='cpp' needs one dtype and at most {MAX_CHANNELS} channels; x has "
            f"{tuple(x.shape)}, dtypes are {[str(t.dtype) for t in (x, *others)]}; use backend='auto'"
        )
    return op.select(backend, (x, *others))


def _in_groups(x: Tensor, condition: Tensor) -> Tensor:
    """Tokens (B, S, N, D) as (G groups, tokens, D): those that share a row of the condition form a group."""
    B, S, N, D = x.shape
    return x.contiguous().view(B, S * N, D) if condition.shape[1] == 1 else x.contiguous().view(B * S, N, D)


def _rows(condition: Tensor) -> Tensor:
    """(B, S or 1, 1, D) as a batch of single frames (G, 1, D); no copy for a chunk of a linear layer's output."""
    return condition.reshape(-1, 1, condition.shape[-1])


class _ModulatedNormFunction(torch.autograd.Function):
    """The kernel's modulated norm; backward keeps x and two numbers per token."""

    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor, scale: Tensor, epsilon: float):
        tokens, out = _in_groups(x, shift), new_result(x.shape, x.dtype)
        statistics = torch.empty(*tokens.shape[:2], 2)  # mean and inverse deviation of each token
        reads = dict(x=tokens, shift=_rows(shift), scale=_rows(scale), epsilon=epsilon)
        writes = dict(out=_in_groups(out, shift))
        native.run("modulate", Operands(tokens, writes, dict(reads, statistics=statistics.data_ptr())))
        ctx.save_for_backward(x, shift, scale, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, shift, scale, statistics = ctx.saved_tensors
        tokens, grad_x = _in_groups(x, shift), new_result(x.shape, x.dtype)
        grad_shift, grad_scale = new_result(shift.shape, shift.dtype), new_result(scale.shape, scale.dtype)
        reads = dict(x=tokens, scale=_rows(scale), grad_out=_in_groups(grad, shift))
        writes = dict(grad_x=_in_groups(grad_x, shift), grad_shift=_rows(grad_shift), grad_scale=_rows(grad_scale))
        native.run("modulate_backward", Operands(tokens, writes, dict(reads, statistics=statistics.data_ptr())))
        return grad_x, grad_shift, grad_scale, None


class _GatedResidualFunction(torch.autograd.Function):
    """torch's own forward pass, which is one pass; the kernel's backward."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, branch: Tensor):
        ctx.save_for_backward(gate, branch)
        return gated_residual_reference(x, gate, branch)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        gate, branch = ctx.saved_tensors
        grad_gate, grad_branch = new_result(gate.shape, gate.dtype), new_result(branch.shape, branch.dtype)
        tokens = _in_groups(branch, gate)
        reads = dict(branch=tokens, gate=_rows(gate), grad_out=_in_groups(grad, gate))
        writes = dict(grad_branch=_in_groups(grad_branch, gate), grad_gate=_rows(grad_gate))
        native.run("gate_backward", Operands(tokens, writes, reads))
        return grad, grad_gate, grad_branch


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
