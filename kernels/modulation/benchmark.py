"""adaLN in the benchmark, forward and backward; gradients are new memory in every variant, as autograd has it."""

from collections.abc import Callable

import torch
from torch import Tensor

from dydiff_kernels.benchmark.cases import BenchmarkCase, Inputs
from dydiff_kernels.modulation import gated_residual, modulated_norm

TOKEN_SIZES = {
    "turbulence": (8, 15, 16, 128),
    "robonet": (16, 12, 64, 384),
    "sevir": (16, 13, 64, 768),
    "large": (8, 32, 128, 1024),
}
"""(B, S, N, D): tokens of a network for the data of ``SIZES``, for the operations between its layers."""


def _conditions(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Shift, scale and gate of a token's frame, (B, S, 1, D) each, as chunks of a linear layer's output."""
    generator = torch.Generator(device).manual_seed(0)
    conditions = torch.randn(*shape[:2], 1, 3 * shape[-1], generator=generator, device=device)
    return conditions.to(dtype).chunk(3, dim=-1)


def _differentiate(op: Callable[..., Tensor], tensors: list[Tensor], upstream: Tensor) -> list[Tensor | None]:
    """Forward and backward through every tensor; the gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    torch.autograd.backward(op(*leaves), upstream)
    return [leaf.grad for leaf in leaves]


def _modulate(i: Inputs, k: tuple[Tensor, ...], backend: str) -> Tensor | None:
    op = lambda *leaves: modulated_norm(*leaves, backend=backend)  # noqa: E731
    return _differentiate(op, [i.x, *k[:2]], i.y)[0]


def _gate(i: Inputs, k: tuple[Tensor, ...], backend: str) -> Tensor | None:
    """The gradient of the branch: that of x is the upstream gradient itself."""
    op = lambda *leaves: gated_residual(*leaves, backend=backend)  # noqa: E731
    return _differentiate(op, [i.x, k[2], i.y], i.out)[2]


def _case(
    name: str, tensors_moved: int, run: Callable[[Inputs, tuple[Tensor, ...], str], Tensor | None]
) -> BenchmarkCase:
    return BenchmarkCase(name, tensors_moved, _conditions, lambda i, k: run(i, k, "reference"), run, sizes=TOKEN_SIZES)


BENCHMARKS = [_case("modulated_norm", 5, _modulate), _case("gated_residual", 6, _gate)]
