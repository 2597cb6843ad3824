"""Forward process and training target in plain torch (arXiv 2503.00951); differentiable."""

from torch import Tensor

from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.dtypes import compute_dtype, per_sample
from dydiff_kernels.frame_mix.reference import frame_mix_reference
from dydiff_kernels.levels import Levels
from dydiff_kernels.noise.reference import draw_colored, draw_noise
from dydiff_kernels.tables import TableRows, of_samples


def add_noise_reference(
    x: Tensor,
    logvar: Tensor | None,
    posterior_noise: Tensor | NoiseCounter | None,
    scale: float,
    levels: Levels | TableRows[Levels],
    noise: Tensor | NoiseCounter,
    noise_operator: Tensor | None,
    mixes_target: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """z = a A x + s B ε, target = p B ε + q A x (without mixing p ε + q x), and x, in float32 or float64.

    With ``noise_operator``, L, ε is L times ``noise``.
    With ``logvar`` the argument x is a posterior's mean, and x = scale·(mean + exp(logvar/2)·n) with its noise n.
    """
    x, levels = x.to(compute_dtype(x)), of_samples(levels, x)
    if logvar is not None and posterior_noise is not None:
        x = scale * (x + (0.5 * logvar.to(x.dtype)).exp() * draw_noise(posterior_noise, x))
    white = draw_colored(noise, noise_operator, x)
    a, s, p, q = (per_sample(k, x) for k in (levels.signal, levels.noise, levels.target_noise, levels.target_signal))
    mean, mixed = frame_mix_reference(x, levels.frame_gamma), frame_mix_reference(white, levels.noise_gamma)
    return a * mean + s * mixed, p * mixed + q * mean if mixes_target else p * white + q * x, x
