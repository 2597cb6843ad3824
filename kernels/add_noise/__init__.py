"""``add_noise``: clean latents to noisy ones and the training target, in one pass (arXiv 2503.00951, forward process).

Reads x and writes z and the target: 3·N·b bytes for N elements of b bytes. The kernels pass on no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dydiff_kernels import native
from dydiff_kernels.add_noise.reference import add_noise_reference
from dydiff_kernels.checks import check_frames, check_like, check_noise, check_noise_operator
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.levels import Levels
from dydiff_kernels.outputs import run_into
from dydiff_kernels.registry import Operands, register_op
from dydiff_kernels.tables import TableRows, as_operand


@dataclass(frozen=True)
class LatentPosterior:
    """Pre-encoded latents as the Gaussian they are sampled from: x = scale·(mean + exp(logvar/2)·n).

    Args:
        mean: (B, S, *rest) float32, bfloat16, float16 or float64.
        logvar: natural logarithm of the variance, like ``mean``.
        noise: n, a tensor like ``mean`` or the ``NoiseCounter`` it is drawn from (stream ``LATENT_POSTERIOR``).
        scale: the autoencoder's latent scale.
    """

    mean: Tensor
    logvar: Tensor
    noise: Tensor | NoiseCounter
    scale: float = 1.0


class NoisedLatents(NamedTuple):
    """Results of ``add_noise``, each (B, S, *rest); None where it was not asked for."""

    z: Tensor
    target: Tensor | None
    x0: Tensor | None


def add_noise(
    latents: Tensor | LatentPosterior,
    levels: Levels | TableRows[Levels],
    noise: Tensor | NoiseCounter,
    *,
    noise_operator: Tensor | None = None,
    mixes_target: bool = True,
    with_target: bool = True,
    with_x0: bool = False,
    dtype: torch.dtype | None = None,
    out: NoisedLatents | None = None,
    backend: str = "auto",
) -> NoisedLatents:
    """z = a A x + s B ε and what the network shall predict from it, p B ε + q A x (arXiv 2503.00951, forward process).

    Args:
        latents: x, (B, S, *rest), any strides; or the ``LatentPosterior`` to sample it from in the same pass.
        levels: a, s, γ̄ of A and B, p and q, each (B,); or rows of a table of them, with which a call is one launch.
        noise: ε, like ``latents``, or the ``NoiseCounter`` to draw it from in the kernel.
        noise_operator: L (S, S), float32 (float64 for float64) on the device of ``latents``. Its lower triangle acts on
            the frames of ε: L ε takes its place. None is the identity.
        mixes_target: False for the target p ε + q x, compared before mixing.
        with_target: False leaves the target out.
        with_x0: also return x, which the network is conditioned on. Given as a tensor it is returned as it is.
        dtype: storage of the results; default that of the latents.
        out: results to overwrite, of the right shape and dtype; saves their allocation, which on a CPU costs more than
            the kernel. Entries that are not asked for may be None.
        backend: ``auto | triton | cpp | reference``.

    Returns:
        ``NoisedLatents(z, target, x0)``. Differentiable in latents and noise given as tensors that require a gradient;
        then, and for float64, the reference runs.

    Raises:
        ValueError: wrong shape, dtype, device, length or range.
    """
    op = "add_noise"
    posterior = latents if isinstance(latents, LatentPosterior) else None
    x, name = (latents.mean, "latents.mean") if isinstance(latents, LatentPosterior) else (latents, "latents")
    check_frames(op, name, x)
    if posterior:
        check_like(op, "latents.logvar", posterior.logvar, name, x)
        check_noise(op, "latents.noise", posterior.noise, name, x)
    check_noise(op, "noise", noise, name, x)
    check_noise_operator(op, noise_operator, name, x)
    dtype = dtype or x.dtype
    if (dtype == torch.float64) != (x.dtype == torch.float64):
        raise ValueError(f"{op}: dtype is {dtype}, {name} has {x.dtype}; float64 cannot be mixed with others")
    keeps_latents = with_x0 and not posterior and x.dtype == dtype and (out is None or out.x0 is None)
    sampled = (posterior.logvar, posterior.noise, float(posterior.scale)) if posterior else (None, None, 1.0)
    arguments = (x, *sampled, levels.checked(op, x.shape[0]), noise, noise_operator, mixes_target)
    wanted = dict(z=True, target=with_target, x0=with_x0 and not keeps_latents)
    inputs = (x, *sampled, noise)
    z, target, x0 = run_into(_OP, backend, inputs, arguments, wanted=wanted, out=out, like=x, dtype=dtype)
    assert z is not None
    return NoisedLatents(z, target, x if keeps_latents else x0)


def operands(
    x: Tensor,
    logvar: Tensor | None,
    posterior_noise: Tensor | NoiseCounter | None,
    scale: float,
    levels: Levels | TableRows[Levels],
    noise: Tensor | NoiseCounter,
    noise_operator: Tensor | None,
    mixes_target: bool,
    out: Sequence[Tensor | None],
) -> Operands:
    """What the kernels take, from the arguments of the reference and where to write."""
    sampled = dict(latents=x, logvar=logvar, posterior_noise=posterior_noise, scale=scale)
    reads = dict(sampled, noise=noise, noise_operator=noise_operator, coefficients=as_operand(levels))
    writes = dict(zip(("z", "target", "x0"), out, strict=True))
    return Operands(x, writes, dict(reads, mixes_target=mixes_target))


_OP = register_op(
    "add_noise",
    reference=add_noise_reference,
    cpp=lambda *arguments: native.run("add_noise", operands(*arguments)),
    triton="dydiff_kernels.add_noise.triton_kernel:add_noise",
    aot_cases="dydiff_kernels.add_noise.triton_kernel:AOT_CASES",
    benchmarks="dydiff_kernels.add_noise.benchmark:BENCHMARKS",
)
