"""``add_noise`` in the benchmark: v of a variance-preserving process, noise drawn, white or through an operator."""

import torch
from torch import Tensor

from dydiff_kernels.add_noise import NoisedLatents, add_noise
from dydiff_kernels.add_noise.reference import add_noise_reference
from dydiff_kernels.benchmark.cases import BenchmarkCase, Inputs, noise_counter, ramp, random_operator
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.levels import Levels

_Parameters = tuple[Levels, NoiseCounter, Tensor | None]


def _parameters(colored: bool, shape: tuple[int, ...], device: torch.device) -> _Parameters:
    alpha_bar, gamma_bar = ramp(0.2, 0.7, shape[0], device), ramp(0.5, 0.9, shape[0], device)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    operator = random_operator(shape[1], device) if colored else None
    return Levels(a, s, gamma_bar, gamma_bar, a, -s), noise_counter(shape[0], device), operator


def _eager(i: Inputs, parameters: _Parameters) -> tuple[Tensor, Tensor]:
    noise = torch.randn(i.x.shape, device=i.x.device)
    z, target, _ = add_noise_reference(i.x, None, None, 1.0, parameters[0], noise, parameters[2], True)
    return z.to(i.x.dtype), target.to(i.x.dtype)


def _case(name: str, colored: bool) -> BenchmarkCase:
    def kernel(i: Inputs, k: _Parameters, backend: str, out: NoisedLatents | None = None) -> NoisedLatents:
        return add_noise(i.x, k[0], k[1], noise_operator=k[2], out=out, backend=backend)

    return BenchmarkCase(
        name,
        tensors_moved=3,
        parameters=lambda shape, dtype, device: _parameters(colored, shape, device),
        eager=_eager,
        fresh=kernel,
        reusing=lambda i, k, backend: kernel(i, k, backend, NoisedLatents(i.out, i.out2, None)),
    )


BENCHMARKS = [_case("add_noise", colored=False), _case("add_noise_colored", colored=True)]
