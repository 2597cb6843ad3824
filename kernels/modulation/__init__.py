"""``modulated_norm`` and ``gated_residual``: what surrounds the layer of an adaLN-Zero branch (Peebles & Xie 2023).

    branch = layer(modulated_norm(x, shift, scale));   x = gated_residual(x, gate, branch)

Least bytes for N elements of b bytes: modulated_norm reads x and writes y (2·N·b); its backward pass reads x and dy
and writes dx (3·N·b); that of gated_residual reads dy and the branch and writes the branch's gradient (3·N·b). The sums
that are the gradients of shift, scale and gate cost eager torch more passes; here they fall out of the same one.

Under torch.compile they are custom ops, which it leaves as they are. On a GPU a forward pass launches one kernel, a
backward pass two.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dydiff_kernels import native
from dydiff_kernels.checks import check_dtype
from dydiff_kernels.modulation.reference import gated_residual_reference, modulated_norm_reference
from dydiff_kernels.outputs import LARGE_BYTES, channels_contiguous, new_result
from dydiff_kernels.registry import Op, Operands, Passes, register_op, runs_as_custom_op

COMPILED = object()
"""In the place of kernels, in code that torch.compile traces."""


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, *, epsilon: float = 1e-6, frames_last: bool = False, backend: str = "auto"
) -> Tensor:
    """y = norm(x)·(1 + scale) + shift, the norm being LayerNorm over D without parameters. Differentiable once.

    Args:
        x: tokens (B, S, N, D), float32, bfloat16 or float16; float64 runs on the reference.
        shift: (B, S, 1, D) or (B, 1, 1, D): one row for the tokens of a frame, or of a sample.
        scale: like ``shift``.
        epsilon: added to the variance.
        frames_last: lay the frames of a token side by side, as attention over frames takes them: y keeps its shape, and
            its memory is (B, N, S, D).
        backend: ``auto | triton | cpp | reference``.

    Returns:
        Like ``x``, of contiguous memory in one of the two orders.

    Raises:
        ValueError: shapes or devices that don't belong together, x of integers, or a backend that can't run here.
    """
    for name, condition in (("shift", shift), ("scale", scale)):
        _check_condition("modulated_norm", name, condition, x)
    run = _select(_NORM, backend, x, shift, scale)
    if run is COMPILED:
        return _compiled_norm(x, shift, scale, epsilon, frames_last, backend)[0]
    if not isinstance(run, Passes):
        return run(x, shift, scale, epsilon, frames_last)
    if torch.is_grad_enabled():
        return _ModulatedNormFunction.apply(x, shift, scale, epsilon, frames_last, run)
    return run.forward(x, shift, scale, epsilon, frames_last)[0]


def gated_residual(x: Tensor, gate: Tensor, branch: Tensor, *, backend: str = "auto") -> Tensor:
    """x + gate·branch. Differentiable once.

    Args:
        x: tokens (B, S, N, D).
        gate: (B, S, 1, D) or (B, 1, 1, D).
        branch: like ``x``, of any strides; its gradient is laid out as it is.
        backend: ``auto | triton | cpp | reference``.

    Returns:
        Like ``x``.

    Raises:
        ValueError: shapes or devices that don't belong together, x of integers, or a backend that can't run here.
    """
    _check_condition("gated_residual", "gate", gate, x)
    if branch.shape != x.shape:
        raise ValueError(
            f"gated_residual: branch has shape {tuple(branch.shape)}; expected {tuple(x.shape)}, that of x"
        )
    _check_device("gated_residual", "branch", branch, x)
    run = _select(_GATE, backend, x, gate, branch)
    if run is COMPILED:
        return _compiled_gate(x, gate, branch, backend)
    if not isinstance(run, Passes):
        return run(x, gate, branch)
    return (
        _GatedResidualFunction.apply(x, gate, branch, run) if torch.is_grad_enabled() else run.forward(x, gate, branch)
    )


def _check_condition(op: str, name: str, condition: Tensor, x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}; expected (B, S, N, D)")
    check_dtype(op, "x", x)
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


def _select(op: Op, backend: str, x: Tensor, *others: Tensor) -> Any:
    """What runs: mixed dtypes, wide or no tokens take the reference; a kernel in compiled code is `COMPILED`."""
    fits = all(t.dtype == x.dtype for t in others) and x.shape[-1] <= native.MAX_CHANNELS
    if x.numel() == 0 or (backend == "auto" and not fits):
        return op.reference
    if backend in ("cpp", "triton") and not fits:
        raise ValueError(
            f"{op.name}: backend={backend!r} needs one dtype and at most {native.MAX_CHANNELS} channels; x has "
            f"{tuple(x.shape)}, dtypes are {[str(t.dtype) for t in (x, *others)]}; use backend='auto'"
        )
    if runs_as_custom_op():
        return COMPILED if op.has_kernel(backend, (x, *others)) else op.reference
    return op.select(backend, (x, *others))


def num_groups(shape: torch.Size, condition: Tensor) -> int:
    """G: tokens (B, S, N, D) that share a row of the condition form a group, numbered by sample, then by frame."""
    return shape[0] * condition.shape[1]


def new_tokens(like: Tensor, frames_last: bool | None = None, empty: Callable[..., Tensor] = new_result) -> Tensor:
    """Uninitialised memory of the shape (B, S, N, D) of ``like``, its order (B, N, S, D) where ``frames_last``.

    None takes the order of ``like``, where its memory is in either.
    """
    B, S, N, D = like.shape
    if frames_last is None:
        frames_last = not like.is_contiguous() and like.transpose(1, 2).is_contiguous()
    if frames_last:
        return empty((B, N, S, D), dtype=like.dtype, device=like.device).transpose(1, 2)
    return empty((B, S, N, D), dtype=like.dtype, device=like.device)


class _ModulatedNormFunction(torch.autograd.Function):
    """The kernels' modulated norm; backward keeps x and two numbers per token."""

    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor, scale: Tensor, epsilon: float, frames_last: bool, run: Passes):
        out, statistics = run.forward(x, shift, scale, epsilon, frames_last)
        ctx.save_for_backward(x, shift, scale, statistics)
        ctx.run = run
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return *ctx.run.backward(grad, *ctx.saved_tensors), None, None, None


class _GatedResidualFunction(torch.autograd.Function):
    """The kernels' gated residual; the gradient of x is the upstream one."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, branch: Tensor, run: Passes):
        ctx.save_for_backward(gate, branch)
        ctx.run = run
        return run.forward(x, gate, branch)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return grad, *ctx.run.backward(grad, *ctx.saved_tensors), None


def _rows(condition: Tensor) -> Tensor:
    """(B, S or 1, 1, D) as a batch of single frames (G, 1, D); no copy for a chunk of a linear layer's output."""
    return condition.reshape(-1, 1, condition.shape[-1])


def _token_operands(x: Tensor, condition: Tensor) -> dict[str, Any]:
    """What says where the tokens of groups lie."""
    B, S, N, D = x.shape
    groups = num_groups(x.shape, condition)
    return dict(shape=native.shape(groups, B * S * N // groups, D), num_frames=S, num_tokens=N)


def _norm_forward(x: Tensor, shift: Tensor, scale: Tensor, epsilon: float, frames_last: bool) -> tuple[Tensor, Tensor]:
    x, out = channels_contiguous(x), new_tokens(x, frames_last)
    statistics = torch.empty(x.shape[:3].numel(), 2)  # mean and inverse deviation of each token
    reads = dict(x=native.token_view(x), shift=_rows(shift), scale=_rows(scale), epsilon=epsilon)
    reads["statistics"], writes = statistics.data_ptr(), dict(out=native.token_view(out))
    native.run("modulate", Operands(x, writes, {**_token_operands(x, shift), **reads}))
    return out, statistics


def _norm_backward(grad: Tensor, x: Tensor, shift: Tensor, scale: Tensor, statistics: Tensor) -> tuple[Tensor, ...]:
    x, grad, grad_x = channels_contiguous(x), channels_contiguous(grad), new_tokens(x)
    grad_shift, grad_scale = new_result(shift.shape, shift.dtype), new_result(scale.shape, scale.dtype)
    reads = dict(x=native.token_view(x), scale=_rows(scale), grad_out=native.token_view(grad))
    writes = dict(grad_x=native.token_view(grad_x), grad_shift=_rows(grad_shift), grad_scale=_rows(grad_scale))
    reads = dict(reads, statistics=statistics.data_ptr())
    native.run("modulate_backward", Operands(x, writes, {**_token_operands(x, shift), **reads}))
    return grad_x, grad_shift, grad_scale


def _gate_forward(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """torch's own forward pass, which is one pass; into memory of ours where that is worth its call."""
    out = None if x.is_contiguous() and x.nbytes < LARGE_BYTES else new_tokens(x)
    return torch.addcmul(x, gate, branch, out=out)


def _gate_backward(grad: Tensor, gate: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    grad, branch = channels_contiguous(grad), channels_contiguous(branch)
    grad_gate, grad_branch = new_result(gate.shape, gate.dtype), new_tokens(branch)
    reads = dict(branch=native.token_view(branch), gate=_rows(gate), grad_out=native.token_view(grad))
    writes = dict(grad_branch=native.token_view(grad_branch), grad_gate=_rows(grad_gate))
    native.run("gate_backward", Operands(branch, writes, {**_token_operands(branch, gate), **reads}))
    return grad_gate, grad_branch


_NORM = register_op(
    "modulated_norm",
    reference=modulated_norm_reference,
    cpp=Passes(_norm_forward, _norm_backward),
    triton="dydiff_kernels.modulation.triton_kernel:NORM",
    differentiable=True,
    aot_cases="dydiff_kernels.modulation.triton_kernel:AOT_CASES",
    benchmarks="dydiff_kernels.modulation.benchmark:BENCHMARKS",
)
_GATE = register_op(
    "gated_residual",
    reference=gated_residual_reference,
    cpp=Passes(_gate_forward, _gate_backward),
    triton="dydiff_kernels.modulation.triton_kernel:GATE",
    differentiable=True,
)


# What torch.compile sees of the kernels: operations of known shapes and gradients, run as they are.


@torch.library.custom_op("dydiff::modulated_norm", mutates_args=())
def _compiled_norm(
    x: Tensor, shift: Tensor, scale: Tensor, epsilon: float, frames_last: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return _NORM.select(backend, (x,)).forward(x, shift, scale, epsilon, frames_last)


@torch.library.custom_op("dydiff::modulated_norm_backward", mutates_args=())
def _compiled_norm_backward(
    grad: Tensor, x: Tensor, shift: Tensor, scale: Tensor, statistics: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _NORM.select(backend, (x,)).backward(grad, x, shift, scale, statistics)


@torch.library.custom_op("dydiff::gated_residual", mutates_args=())
def _compiled_gate(x: Tensor, gate: Tensor, branch: Tensor, backend: str) -> Tensor:
    return _GATE.select(backend, (x,)).forward(x, gate, branch)


@torch.library.custom_op("dydiff::gated_residual_backward", mutates_args=())
def _compiled_gate_backward(grad: Tensor, gate: Tensor, branch: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return _GATE.select(backend, (branch,)).backward(grad, gate, branch)


@_compiled_norm.register_fake
def _(x, shift, scale, epsilon, frames_last, backend):
    return new_tokens(x, frames_last, torch.empty), x.new_empty((x.shape[:3].numel(), 2), dtype=torch.float32)


@_compiled_norm_backward.register_fake
def _(grad, x, shift, scale, statistics, backend):
    return new_tokens(x, None, torch.empty), shift.new_empty(shift.shape), scale.new_empty(scale.shape)


@_compiled_gate.register_fake
def _(x, gate, branch, backend):
    return new_tokens(x, None, torch.empty)


@_compiled_gate_backward.register_fake
def _(grad, gate, branch, backend):
    return gate.new_empty(gate.shape), new_tokens(branch, None, torch.empty)


def _keep_norm(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.backend = inputs[5]


def _differentiate_norm(ctx, grad, _):
    return *_compiled_norm_backward(grad, *ctx.saved_tensors, ctx.backend), None, None, None


def _keep_gate(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:3])
    ctx.backend = inputs[3]


def _differentiate_gate(ctx, grad):
    return grad, *_compiled_gate_backward(grad, *ctx.saved_tensors, ctx.backend), None


_compiled_norm.register_autograd(_differentiate_norm, setup_context=_keep_norm)
_compiled_gate.register_autograd(_differentiate_gate, setup_context=_keep_gate)
