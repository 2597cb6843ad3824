"""``reverse_step`` in the benchmark: DDIM with a v network, η 0 and 0.5, and noise left white or coloured."""

import torch
from torch import Tensor

from dydiff_kernels.benchmark.cases import BenchmarkCase, Inputs, noise_counter, ramp, random_operator
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.dtypes import per_sample
from dydiff_kernels.frame_mix.reference import frame_mix_reference, frame_unmix_reference
from dydiff_kernels.noise.reference import draw_colored
from dydiff_kernels.reverse_step import ReverseStep, reverse_step
from dydiff_kernels.reverse_step.coefficients import StepCoefficients
from dydiff_kernels.reverse_step.reference import reverse_step_reference

_Parameters = tuple[StepCoefficients, NoiseCounter | None, Tensor | None]


def _parameters(eta: float, white: bool, colored: bool, shape: tuple[int, ...], device: torch.device) -> _Parameters:
    """A DDIM step of a variance-preserving process. ``white``: operators on noise are the identity.
    ``colored``: fresh noise goes through an operator."""
    alpha_bar, next_alpha_bar = ramp(0.2, 0.7, shape[0], device), ramp(0.3, 0.8, shape[0], device)
    a, s, one = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), torch.ones_like(alpha_bar)
    sigma = eta * ((1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha_bar / next_alpha_bar)).sqrt()
    step = StepCoefficients(
        frame_gamma=ramp(0.5, 0.9, shape[0], device),
        next_frame_gamma=ramp(0.55, 0.95, shape[0], device),
        noise_gamma=one if white else None,
        next_noise_gamma=one if white else None,
        from_z=a,
        from_output=-s,
        signal=a,
        clean=next_alpha_bar.sqrt(),
        kept_noise=(1 - next_alpha_bar - sigma**2).sqrt() / s,
        sigma=sigma,
    )
    counter, operator = noise_counter(shape[0], device), random_operator(shape[1], device)
    return step.checked("benchmark", shape[0]), counter if eta else None, operator if colored else None


def _eager(i: Inputs, parameters: _Parameters) -> Tensor:
    """As ``reverse_step_reference``; shared operators as one would write them out, with one mixing less."""
    step, counter, operator = parameters
    z, output = i.x.float(), i.y.float()
    noise = None if counter is None else draw_colored(torch.randn(z.shape, device=z.device), operator, z)
    if not step.shares_operators:
        return reverse_step_reference(z, output, step, True, noise, None, None, None)[0].to(i.x.dtype)
    from_z, from_output, a, b, _, k, sigma = (per_sample(factor, z) for factor in step.factors())
    x0 = frame_unmix_reference(from_z * z + from_output * output, step.frame_gamma)
    total = k * frame_unmix_reference(z, step.frame_gamma) + (b - k * a) * x0
    total = total if noise is None else total + sigma * noise
    return frame_mix_reference(total, step.next_frame_gamma).to(i.x.dtype)


def _case(name: str, eta: float = 0.0, white: bool = False, colored: bool = False) -> BenchmarkCase:
    def kernel(i: Inputs, k: _Parameters, backend: str, out: ReverseStep | None = None) -> ReverseStep:
        return reverse_step(i.x, i.y, k[0], noise=k[1], noise_operator=k[2], out=out, backend=backend)

    return BenchmarkCase(
        name,
        tensors_moved=3,
        parameters=lambda shape, dtype, device: _parameters(eta, white, colored, shape, device),
        eager=_eager,
        fresh=kernel,
        reusing=lambda i, k, backend: kernel(i, k, backend, ReverseStep(i.out, None)),
    )


BENCHMARKS = [
    _case("reverse_step"),
    _case("reverse_step_noise", eta=0.5),
    _case("reverse_step_colored", eta=0.5, colored=True),
    _case("reverse_step_white", white=True),
]
