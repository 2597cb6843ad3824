"""What a benchmark case is: per op the eager torch a user would write, and the kernel, on the same inputs.

Each op's cases stand in the ``benchmark.py`` of its folder. Eager code is the op's reference on float32 with
``torch.randn`` for noise: a loop over frames, all else vectorised.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import dydiff_kernels  # noqa: F401  the ops register their cases
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.registry import collect

SIZES = {
    "turbulence": (16, 15, 2, 64, 64),
    "robonet": (16, 12, 3, 64, 64),
    "sevir": (16, 13, 1, 128, 128),
    "large": (16, 32, 4, 128, 128),
}
"""(B, S, C, H, W): the three data sets' configurations, and one of 33.5 million elements."""


@dataclass(frozen=True)
class Inputs:
    """One set of tensors of one shape, and memory for results; the sets rotate."""

    x: Tensor
    y: Tensor
    out: Tensor
    out2: Tensor


@dataclass(frozen=True)
class BenchmarkCase:
    """One row of the benchmark.

    Args:
        name: the row's name.
        tensors_moved: reads and writes of a tensor that the op cannot do without; bytes = tensors_moved · N · bytes per
            element.
        parameters: (shape, dtype, device) to whatever else the calls below take, as levels and coefficients.
        eager: (inputs, parameters) to the result, in torch's own operations.
        fresh: (inputs, parameters, backend) to the result, by the kernel into new memory.
        reusing: the same into memory of ``Inputs``; None where the op has no such form.
        sizes: shape by the name of the size.
    """

    name: str
    tensors_moved: int
    parameters: Callable[[tuple[int, ...], torch.dtype, torch.device], Any]
    eager: Callable[[Inputs, Any], object]
    fresh: Callable[[Inputs, Any, str], Any]
    reusing: Callable[[Inputs, Any, str], Any] | None = None
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: SIZES)


def all_cases() -> dict[str, BenchmarkCase]:
    """The cases of every registered op, by name."""
    return {case.name: case for case in collect("benchmarks")}


def ramp(low: float, high: float, batch: int, device: torch.device) -> Tensor:
    """Levels (B,) float64, a different one for every sample."""
    return torch.linspace(low, high, max(2, batch), dtype=torch.float64, device=device)[:batch]


def noise_counter(batch: int, device: torch.device) -> NoiseCounter:
    """A name of noise for ``batch`` samples."""
    return NoiseCounter(1, torch.arange(batch, device=device), 0)


def random_operator(frames: int, device: torch.device) -> Tensor:
    """An operator on noise (S, S), lower-triangular, that about keeps its variance."""
    return (torch.randn(frames, frames, device=device) / frames**0.5).tril()


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Random x and y, and memory that has been written to once, so that no page is new."""
    generator = torch.Generator(device).manual_seed(seed)
    x, y = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
    return Inputs(x, y, x.clone(), x.clone())


def check(case: BenchmarkCase, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Refuses to go on with a kernel that disagrees with its reference, on two samples of the given frame size.

    Raises:
        RuntimeError: naming op, shape and the largest difference.
    """
    shape = (min(2, shape[0]), *shape[1:])
    inputs, parameters = make_inputs(shape, dtype, device, seed=0), case.parameters(shape, dtype, device)
    actual, expected = (case.fresh(inputs, parameters, backend) for backend in ("auto", "reference"))
    pairs = [(actual, expected)] if isinstance(actual, Tensor) else zip(actual, expected, strict=True)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}[dtype]
    for one, other in pairs:
        if one is None:
            continue
        value, difference = other.float().abs(), (one.float() - other.float()).abs()
        # a value that rounding takes to its neighbour is off by one step of its storage type, which grows with it
        allowed = torch.maximum(tolerance * other.float().std(), torch.finfo(dtype).eps * value)
        if not (difference <= allowed).all():  # also catches NaN
            worst = (difference - allowed).nan_to_num(torch.inf).argmax()
            raise RuntimeError(
                f"{case.name} {shape} on {device} is wrong by {difference.flatten()[worst]:.2e} where the value is "
                f"{other.flatten()[worst]:.2e} (allowed {allowed.flatten()[worst]:.2e}); not timed"
            )
