"""An op as another package defines one: a reference, a Triton kernel, a benchmark case, all by ``register_op``."""

import torch

from dydiff_kernels import register_op
from dydiff_kernels.benchmark.cases import BenchmarkCase


def doubled_reference(x: torch.Tensor) -> torch.Tensor:
    """2 x."""
    return x * 2


OP = register_op(
    "doubled",
    reference=doubled_reference,
    triton="outside_op_triton:doubled",
    aot_cases="outside_op_triton:AOT_CASES",
    benchmarks="outside_op:BENCHMARKS",
)


def doubled(x: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """2 x, for x (B, S, *rest)."""
    return OP.select(backend, [x])(x)


BENCHMARKS = [
    BenchmarkCase(
        "doubled",
        tensors_moved=2,
        parameters=lambda shape, dtype, device: None,
        eager=lambda i, _: doubled_reference(i.x),
        fresh=lambda i, _, backend: doubled(i.x, backend=backend),
    )
]
