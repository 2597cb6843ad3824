"""``attention_inputs``: what stands between the projection of tokens and their attention, in one pass each way.

Splitting the projection, the norm of each head's queries and keys (Dehghani et al. 2023), the rotation by the token's
position (Su et al. 2021) and the layout that attention takes. B batch, N tokens, H heads, E channels of a head.

Least bytes for B·N·H·E elements of b bytes: forward reads and writes queries and keys (4·b each), the values are a
view. Backward reads queries, keys and three gradients and writes the projection's gradient (8·b each). Nothing but
the projection is kept.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import CustomOpDef

from dydiff_kernels import native
from dydiff_kernels.attention_inputs.reference import attention_inputs_reference
from dydiff_kernels.checks import check_dtype
from dydiff_kernels.outputs import channels_contiguous, new_result
from dydiff_kernels.registry import Operands, Passes, register_op, runs_as_custom_op

HeadNorm = Literal["layer", "rms", "none"]
NORM_CODES = {"none": 0, "layer": 1, "rms": 2}


def attention_inputs(
    qkv: Tensor,
    weight_q: Tensor | None,
    weight_k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    norm: HeadNorm,
    epsilon: float = 1e-6,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, normalised per head and rotated, and values. Differentiable once, in ``qkv`` and the weights.

    A query or key x of E channels becomes u = weight · norm(x), and each pair of its channels e < E/2 and e + E/2 turns
    by the token's angle: (u₁ cos - u₂ sin, u₂ cos + u₁ sin).

    Args:
        qkv: (B, N, 3·H·E): all queries, then all keys, then all values of a token, by head; float32, bfloat16 or
            float16, which are calculated in float32; float64 runs on the reference.
        weight_q: (E,), scales of the norm of queries; None without a norm.
        weight_k: the same for keys.
        cos: cosines (N, E/2) of the tokens' angles, float32, without gradient.
        sin: their sines.
        num_heads: H.
        norm: ``layer`` (subtracts the mean over E), ``rms`` (root mean square alone), or ``none``.
        epsilon: added to the variance, or to the mean square.
        backend: ``auto | triton | cpp | reference``.

    Returns:
        q, k, v, each (B, H, N, E), their memory (B, N, H, E). Outside of torch.compile v is a view of ``qkv``.

    Raises:
        ValueError: shapes, types, devices or a norm that don't belong together, or a backend that can't run here.
    """
    check_projection("attention_inputs", qkv, weight_q, weight_k, cos, sin, num_heads, norm)
    arguments = (qkv, weight_q, weight_k, cos.contiguous(), sin.contiguous(), num_heads, norm, epsilon)
    if not qkv.numel():
        return attention_inputs_reference(*arguments)
    if runs_as_custom_op():
        compiled = _OP.has_kernel(backend, (qkv, weight_q, weight_k))
        return _compiled(*arguments, backend) if compiled else attention_inputs_reference(*arguments)
    run = _OP.select(backend, (qkv, weight_q, weight_k))
    if not isinstance(run, Passes):
        return run(*arguments)
    return ProjectionFunction.apply(*arguments, run) if torch.is_grad_enabled() else run.forward(*arguments)


def check_projection(
    op: str, qkv: Tensor, weight_q: Tensor | None, weight_k: Tensor | None, cos: Tensor, sin: Tensor,
    num_heads: int, norm: str,
) -> None:  # fmt: skip
    """Refuses what doesn't belong together, in the name of ``op``; arguments as of `attention_inputs`."""
    if norm not in NORM_CODES:
        raise ValueError(f"{op}: norm is {norm!r}; expected one of {', '.join(NORM_CODES)}")
    check_dtype(op, "qkv", qkv)
    most = 3 * num_heads * native.MAX_CHANNELS
    if qkv.ndim != 3 or qkv.shape[2] % (6 * num_heads) or not 0 < qkv.shape[2] <= most:
        raise ValueError(
            f"{op}: qkv has shape {tuple(qkv.shape)}; expected (B, N, 3·H·E) of H = {num_heads} heads, E even and at "
            f"most {native.MAX_CHANNELS}"
        )
    _, N, channels = qkv.shape
    E = channels // (3 * num_heads)
    for name, tensor, shape in (
        ("weight_q", weight_q, (E,)),
        ("weight_k", weight_k, (E,)),
        ("cos", cos, (N, E // 2)),
        ("sin", sin, (N, E // 2)),
    ):
        if name.startswith("weight") and (tensor is None) != (norm == "none"):
            raise ValueError(f"{op}: {name} is {'missing' if tensor is None else 'given'} for norm {norm!r}")
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; expected {shape}")
        if name in ("cos", "sin") and tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"{op}: {name} has dtype {tensor.dtype}; expected torch.float32")
        if tensor is not None and tensor.device != qkv.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}; expected {qkv.device}, where qkv is")


def values(qkv: Tensor, num_heads: int) -> Tensor:
    """v, (B, H, N, E), a view."""
    return qkv.unflatten(2, (3, num_heads, -1))[:, :, 2].transpose(1, 2)


def by_head(qkv: Tensor, num_heads: int) -> Tensor:
    """(B, N, 3·H·E) as (B, N, 3·H, E), channels contiguous; a view of qkv wherever those are."""
    heads = qkv.unflatten(2, (3 * num_heads, -1))
    return heads if heads.stride(3) == 1 else heads.contiguous()


class ProjectionFunction(torch.autograd.Function):
    """Kernels that take a projection; backward reads it again, and nothing else is kept."""

    @staticmethod
    def forward(ctx, qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon, run: Passes):
        ctx.save_for_backward(qkv, weight_q, weight_k, cos, sin)
        ctx.options = num_heads, norm, epsilon, run
        return run.forward(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        *options, run = ctx.options
        return *run.backward(*grads, *ctx.saved_tensors, *options), *[None] * 6


def _operands(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon) -> dict:
    B, N, _, E = qkv.shape
    return dict(
        shape=native.shape(B, N, num_heads * E),
        heads=num_heads,
        norm=NORM_CODES[norm],
        epsilon=epsilon,
        qkv=native.token_view(qkv),
        weight_q=None if weight_q is None else weight_q.detach().view(1, 1, E),
        weight_k=None if weight_k is None else weight_k.detach().view(1, 1, E),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
    )


def _forward_cpp(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon) -> tuple[Tensor, Tensor, Tensor]:
    heads = by_head(qkv, num_heads)
    B, N, _, E = heads.shape
    q, k = (new_result((B, N, num_heads, E), qkv.dtype).transpose(1, 2) for _ in range(2))
    operands = _operands(heads, weight_q, weight_k, cos, sin, num_heads, norm, epsilon)
    native.run("attention_inputs", Operands(heads, dict(q=native.token_view(q), k=native.token_view(k)), operands))
    return q, k, values(qkv, num_heads)


def _backward_cpp(grad_q, grad_k, grad_v, qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon):
    heads = by_head(qkv, num_heads)
    grads = [channels_contiguous(grad) for grad in (grad_q, grad_k, grad_v)]
    grad_qkv = new_result(qkv.shape, qkv.dtype)
    weight_grads = [None if weight is None else torch.empty_like(weight) for weight in (weight_q, weight_k)]
    reads = {f"grad_{name}": native.token_view(grad) for name, grad in zip("qkv", grads, strict=True)}
    writes = {
        f"grad_weight_{name}": None if grad is None else grad.view(1, 1, -1)
        for name, grad in zip("qk", weight_grads, strict=True)
    }
    writes["grad_qkv"] = native.token_view(by_head(grad_qkv, num_heads))
    operands = _operands(heads, weight_q, weight_k, cos, sin, num_heads, norm, epsilon)
    native.run("attention_inputs_backward", Operands(heads, writes, {**operands, **reads}))
    return grad_qkv, *weight_grads


_OP = register_op(
    "attention_inputs",
    reference=attention_inputs_reference,
    cpp=Passes(_forward_cpp, _backward_cpp),
    triton="dydiff_kernels.attention_inputs.triton_kernel:PASSES",
    differentiable=True,
    aot_cases="dydiff_kernels.attention_inputs.triton_kernel:AOT_CASES",
    benchmarks="dydiff_kernels.attention_inputs.benchmark:BENCHMARKS",
)


# What torch.compile sees of the kernels: operations of known shapes and gradients, run as they are. No result may be a
# view of an argument, so values are copied, and none may be missing, so the gradient of no weight is empty.


@torch.library.custom_op("dydiff::attention_inputs", mutates_args=())
def _compiled(
    qkv: Tensor, weight_q: Tensor | None, weight_k: Tensor | None, cos: Tensor, sin: Tensor,
    num_heads: int, norm: str, epsilon: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    run = _OP.select(backend, (qkv,))
    q, k, v = run.forward(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon)
    return q, k, torch.empty_like(q).copy_(v)


@torch.library.custom_op("dydiff::attention_inputs_backward", mutates_args=())
def _compiled_backward(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor,
    qkv: Tensor, weight_q: Tensor | None, weight_k: Tensor | None, cos: Tensor, sin: Tensor,
    num_heads: int, norm: str, epsilon: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    run = _OP.select(backend, (qkv,))
    grads = grad_q, grad_k, grad_v
    return without_none(run.backward(*grads, qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon))


def without_none(grads: tuple[Tensor, Tensor | None, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projection and of the weights, as a custom op gives them."""
    grad_qkv, *weights = grads
    grad_q, grad_k = (grad_qkv.new_empty(0) if grad is None else grad for grad in weights)
    return grad_qkv, grad_q, grad_k


def differentiate_with(compiled: CustomOpDef, compiled_backward: CustomOpDef) -> None:
    """Registers what custom ops on a projection have alike: the gradients, their shapes, and what they are made of."""

    @compiled_backward.register_fake
    def _(*inputs):
        qkv, weight_q, weight_k = inputs[-9:-6]
        like = (None if weight is None else weight.new_empty(weight.shape) for weight in (weight_q, weight_k))
        return without_none((qkv.new_empty(qkv.shape), *like))

    def keep(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.options = inputs[5:]

    def differentiate(ctx, *grads):
        grad_qkv, *weights = compiled_backward(*grads, *ctx.saved_tensors, *ctx.options)
        has_weights = ctx.options[1] != "none"
        return grad_qkv, *(weights if has_weights else (None, None)), *[None] * 6

    compiled.register_autograd(differentiate, setup_context=keep)


@_compiled.register_fake
def _(qkv, weight_q, weight_k, cos, sin, num_heads, norm, epsilon, backend):
    B, N, channels = qkv.shape
    shape = (B, N, num_heads, channels // (3 * num_heads))
    return tuple(qkv.new_empty(shape).transpose(1, 2) for _ in range(3))


differentiate_with(_compiled, _compiled_backward)
