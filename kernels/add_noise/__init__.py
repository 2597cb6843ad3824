"""``add_noise``: clean latents to noisy ones and the training target, in one pass (arXiv 2503.00951, forward process).

Reads x and writes z and the target: 3·N·b bytes for N elements of b bytes. The kernels pass on no gradient.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dydiff_kernels import native
from dydiff_kernels.add_noise import reference
from dydiff_kernels.checks import check_frames, check_like, check_noise, check_per_sample
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.dtypes import compute_dtype
from dydiff_kernels.frame_mix.reference import frame_coefficients
from dydiff_kernels.levels import Levels
from dydiff_kernels.noise.reference import draw_noise
from dydiff_kernels.outputs import check_out, deliver, given_or_new
from dydiff_kernels.registry import register_op


@dataclass(frozen=True)
class LatentPosterior:
    """Pre-encoded latents as the Gaussian they are sampled from: x = scale·(mean + exp(logvar/2)·n).

    Args:
        mean: (B, S, *rest) float32, bfloat16, float16 or float64.
        logvar: natural logarithm of the variance, like ``mean``.
        noise: n, a tensor like ``mean`` or the ``NoiseCounter`` it is drawn from (stream ``LATENT_POSTERIOR``).
        scale: the autoencoder's latent scale.
    """

    mean: torch.Tensor
    logvar: torch.Tensor
    noise: torch.Tensor | NoiseCounter
    scale: float = 1.0


class NoisedLatents(NamedTuple):
    """Results of ``add_noise``, each (B, S, *rest); None where it was not asked for."""

    z: torch.Tensor
    target: torch.Tensor | None
    x0: torch.Tensor | None


def add_noise(
    latents: torch.Tensor | LatentPosterior,
    levels: Levels,
    noise: torch.Tensor | NoiseCounter,
    *,
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
        levels: a, s, γ̄ of A and B, p and q, each (B,).
        noise: ε, like ``latents``, or the ``NoiseCounter`` to draw it from in the kernel.
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
    request = _request(latents, levels, noise, mixes_target, with_target, with_x0, dtype)
    given = check_out("add_noise", NoisedLatents._fields, out, request.latents, request.dtype)
    inputs = (request.latents, request.logvar, request.posterior_noise, noise)
    return _OP.select(backend, inputs, request.dtype)(request, given)


Given = tuple[torch.Tensor | None, ...]
"""z, target and x0 to overwrite; None for new memory."""


@dataclass(frozen=True)
class AddNoiseRequest:
    """Validated arguments of ``add_noise``: ``latents`` is x or, with ``logvar``, the posterior's mean."""

    latents: torch.Tensor
    logvar: torch.Tensor | None
    posterior_noise: torch.Tensor | NoiseCounter | None
    scale: float
    levels: Levels
    noise: torch.Tensor | NoiseCounter
    mixes_target: bool
    with_target: bool
    with_x0: bool
    dtype: torch.dtype

    def columns(self) -> list[torch.Tensor]:
        """Columns of the kernels' table, (B,) float64: a, s, p, q, then √γ̄ and √(1-γ̄) of the frames and of the noise."""
        a, s, frame_gamma, noise_gamma, p, q = self.levels
        return [a, s, p, q, *frame_coefficients(frame_gamma), *frame_coefficients(noise_gamma)]

    def results(self, given: Given) -> NoisedLatents:
        """Tensors for a kernel to write. The result x is the latents tensor itself where no kernel need write it."""
        z, target, x0 = given
        return NoisedLatents(
            given_or_new(z, self.latents, self.dtype),
            given_or_new(target, self.latents, self.dtype) if self.with_target else None,
            None
            if not self.with_x0
            else self.latents
            if self.returns_latents(given)
            else given_or_new(x0, self.latents, self.dtype),
        )

    def returns_latents(self, given: Given) -> bool:
        """Whether x is at hand as the result wants it."""
        return self.logvar is None and self.latents.dtype == self.dtype and given[2] is None


def _request(
    latents: torch.Tensor | LatentPosterior,
    levels: Levels,
    noise: torch.Tensor | NoiseCounter,
    mixes_target: bool,
    with_target: bool,
    with_x0: bool,
    dtype: torch.dtype | None,
) -> AddNoiseRequest:
    op = "add_noise"
    posterior = latents if isinstance(latents, LatentPosterior) else None
    x = latents.mean if isinstance(latents, LatentPosterior) else latents
    name = "latents.mean" if posterior else "latents"
    check_frames(op, name, x)
    if posterior:
        check_like(op, "latents.logvar", posterior.logvar, name, x)
        check_noise(op, "latents.noise", posterior.noise, name, x)
    check_noise(op, "noise", noise, name, x)
    dtype = dtype or x.dtype
    if (dtype == torch.float64) != (x.dtype == torch.float64):
        raise ValueError(f"{op}: dtype is {dtype}, {name} has {x.dtype}; float64 cannot be mixed with others")
    return AddNoiseRequest(
        latents=x,
        logvar=posterior.logvar if posterior else None,
        posterior_noise=posterior.noise if posterior else None,
        scale=float(posterior.scale) if posterior else 1.0,
        levels=_check_levels(op, levels, x.shape[0]),
        noise=noise,
        mixes_target=mixes_target,
        with_target=with_target,
        with_x0=with_x0,
        dtype=dtype,
    )


def _check_levels(op: str, levels: Levels, batch: int) -> Levels:
    """``levels`` in float64, in their ranges."""
    ranges = Levels("[0, inf)", "[0, inf)", "(0, 1]", "(0, 1]", "(-inf, inf)", "(-inf, inf)")
    return Levels(
        *(
            check_per_sample(op, f"levels.{name}", value, batch, within)
            for name, value, within in zip(Levels._fields, levels, ranges, strict=True)
        )
    )


def _run_reference(request: AddNoiseRequest, given: Given) -> NoisedLatents:
    compute = compute_dtype(request.latents)
    x0 = request.latents.to(compute)
    if request.logvar is not None and request.posterior_noise is not None:
        noise = draw_noise(request.posterior_noise, request.latents)
        x0 = reference.sample_posterior_reference(x0, request.logvar.to(compute), noise, request.scale)
    noise = draw_noise(request.noise, request.latents)
    z, target = reference.add_noise_reference(x0, request.levels, noise, request.mixes_target)
    return NoisedLatents(
        deliver(z, given[0], request.dtype),
        deliver(target, given[1], request.dtype) if request.with_target else None,
        deliver(x0, given[2], request.dtype) if request.with_x0 else None,
    )


def _run_cpp(request: AddNoiseRequest, given: Given) -> NoisedLatents:
    results = request.results(given)
    table = native.float_table(request.columns())
    native.run(
        "add_noise",
        request.latents,
        latents=request.latents,
        logvar=request.logvar,
        posterior_noise=request.posterior_noise,
        scale=request.scale,
        noise=request.noise,
        coefficients=table.data_ptr(),
        mixes_target=request.mixes_target,
        z=results.z,
        target=results.target,
        x0=None if results.x0 is request.latents else results.x0,
    )
    return results


_OP = register_op(
    "add_noise",
    reference=_run_reference,
    cpp=_run_cpp,
    triton="dydiff_kernels.add_noise.triton_kernel:add_noise",
    aot_cases="dydiff_kernels.add_noise.triton_kernel:AOT_CASES",
    benchmarks="dydiff_kernels.add_noise.benchmark:BENCHMARKS",
)
