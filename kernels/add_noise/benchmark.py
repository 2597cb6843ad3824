"""``add_noise`` in the benchmark: v of a variance-preserving process, noise drawn."""

import torch
from torch import Tensor

from dydiff_kernels.add_noise import NoisedLatents, add_noise
from dydiff_kernels.add_noise.reference import add_noise_reference
from dydiff_kernels.benchmark.cases import BenchmarkCase, Inputs, noise_counter, ramp
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.levels import Levels

_Parameters = tuple[Levels, NoiseCounter]


def _parameters(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Parameters:
    alpha_bar, gamma_bar = ramp(0.2, 0.7, shape[0], device), ramp(0.5, 0.9, shape[0], device)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return Levels(a, s, gamma_bar, gamma_bar, a, -s), noise_counter(shape[0], device)


def _eager(i: Inputs, parameters: _Parameters) -> tuple[Tensor, Tensor]:
    noise = torch.randn(i.x.shape, device=i.x.device)
    z, target, _ = add_noise_reference(i.x, None, None, 1.0, parameters[0], noise, None, True)
    return z.to(i.x.dtype), target.to(i.x.dtype)


BENCHMARKS = [
    BenchmarkCase(
        "add_noise",
        tensors_moved=3,
        parameters=_parameters,
        eager=_eager,
        fresh=lambda i, k, backend: add_noise(i.x, *k, backend=backend),
        reusing=lambda i, k, backend: add_noise(i.x, *k, out=NoisedLatents(i.out, i.out2, None), backend=backend),
    )
]
