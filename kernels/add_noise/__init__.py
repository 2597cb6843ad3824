"""``add_noise``: clean latents to noisy ones and the training target, in one pass (arXiv 2503.00951, forward process).

Reads x and writes z and the target: 3·N·b bytes for N elements of b bytes, 2·N·b with ``with_target=False``, where the
loss draws the noise again from its counter. Nothing here is differentiable: latents come from data.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dydiff_kernels.add_noise import cpp, reference
from dydiff_kernels.backends import choose_backend
from dydiff_kernels.checks import (
    check_frames,
    check_like,
    check_no_grad,
    check_noise,
    check_output,
    check_per_sample,
    check_prediction,
)
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.dtypes import compute_dtype
from dydiff_kernels.memory import new_result
from dydiff_kernels.noise.reference import draw_noise


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
    alpha_bar: torch.Tensor,
    gamma_bar: torch.Tensor,
    noise: torch.Tensor | NoiseCounter,
    *,
    prediction: str = "eps",
    dependent_noise: bool = True,
    with_target: bool = True,
    with_x0: bool = False,
    dtype: torch.dtype | None = None,
    out: NoisedLatents | None = None,
    backend: str = "auto",
) -> NoisedLatents:
    """z = √ᾱ D_γ̄ x + √(1-ᾱ) ε̃ and what the network shall predict from it (arXiv 2503.00951, forward process).

    Args:
        latents: x, (B, S, *rest), any strides; or the ``LatentPosterior`` to sample it from in the same pass.
        alpha_bar: ᾱ_t, (B,) float64 or float32 in [0, 1].
        gamma_bar: γ̄_t, (B,) in [0, 1]; ones give standard diffusion.
        noise: ε, like ``latents``, or the ``NoiseCounter`` to draw it from in the kernel.
        prediction: target ``eps`` (ε̃), ``v`` (√ᾱ ε̃ - √(1-ᾱ) D x) or ``x0`` (x).
        dependent_noise: ε̃ = D_γ̄ ε; if False, ε̃ = ε.
        with_target: False leaves the target out, for ``denoising_loss`` with a ``CounterTarget``.
        with_x0: also return x, which the network is conditioned on. Given as a tensor it is returned as it is.
        dtype: storage of the results; default that of the latents.
        out: results to overwrite, of the right shape and dtype; saves their allocation, which on a CPU costs more than
            the kernel. Entries that are not asked for may be None.
        backend: ``auto | triton | cpp | reference``.

    Returns:
        ``NoisedLatents(z, target, x0)``. For ``prediction="x0"`` and tensor latents of the result's dtype the target is
        the latents tensor itself.

    Raises:
        ValueError: wrong shape, dtype, device, length or range, or latents that require a gradient.
    """
    request = _request(latents, alpha_bar, gamma_bar, noise, prediction, dependent_noise, with_target, with_x0, dtype)
    tensors = [t for t in (request.latents, request.logvar, noise) if isinstance(t, torch.Tensor)]
    chosen = choose_backend("add_noise", backend, request.latents.device, (*(t.dtype for t in tensors), request.dtype))
    results = _allocate(request, out)
    if chosen == "reference":
        _run_reference(request, results)
    elif chosen == "triton":
        from dydiff_kernels.add_noise import triton_kernel

        triton_kernel.add_noise(request, results)
    else:
        cpp.add_noise(request, results)
    return results


@dataclass(frozen=True)
class AddNoiseRequest:
    """Validated arguments of ``add_noise``: ``latents`` is x or, with ``logvar``, the posterior's mean."""

    latents: torch.Tensor
    logvar: torch.Tensor | None
    posterior_noise: torch.Tensor | NoiseCounter | None
    scale: float
    alpha_bar: torch.Tensor
    gamma_bar: torch.Tensor
    noise: torch.Tensor | NoiseCounter
    prediction: str
    dependent_noise: bool
    with_target: bool
    with_x0: bool
    dtype: torch.dtype

    def coefficients(self) -> list[torch.Tensor]:
        """Columns of the kernels' table, (B,) float64: √ᾱ, √(1-ᾱ), √γ and √(1-γ) of the signal and of the noise."""
        alpha, gamma = self.alpha_bar, self.gamma_bar
        noise_gamma = gamma if self.dependent_noise else torch.ones_like(gamma)
        columns = (alpha, 1.0 - alpha, gamma, 1.0 - gamma, noise_gamma, 1.0 - noise_gamma)
        return [column.sqrt() for column in columns]

    def is_kept(self) -> bool:
        """Whether x is at hand in the result's dtype, so that no kernel need write it."""
        return self.logvar is None and self.latents.dtype == self.dtype


def _request(latents, alpha_bar, gamma_bar, noise, prediction, dependent_noise, with_target, with_x0, dtype):
    op = "add_noise"
    posterior = latents if isinstance(latents, LatentPosterior) else None
    x = posterior.mean if posterior else latents
    name = "latents.mean" if posterior else "latents"
    check_frames(op, name, x)
    check_no_grad(op, name, x)
    if posterior:
        check_like(op, "latents.logvar", posterior.logvar, name, x)
        check_noise(op, "latents.noise", posterior.noise, name, x)
    check_noise(op, "noise", noise, name, x)
    check_prediction(op, prediction)
    dtype = dtype or x.dtype
    if (dtype == torch.float64) != (x.dtype == torch.float64):
        raise ValueError(f"{op}: dtype is {dtype}, {name} has {x.dtype}; float64 cannot be mixed with others")
    return AddNoiseRequest(
        latents=x,
        logvar=posterior.logvar if posterior else None,
        posterior_noise=posterior.noise if posterior else None,
        scale=float(posterior.scale) if posterior else 1.0,
        alpha_bar=check_per_sample(op, "alpha_bar", alpha_bar, x.shape[0]),
        gamma_bar=check_per_sample(op, "gamma_bar", gamma_bar, x.shape[0]),
        noise=noise,
        prediction=prediction,
        dependent_noise=dependent_noise,
        with_target=with_target,
        with_x0=with_x0,
        dtype=dtype,
    )


def _allocate(request: AddNoiseRequest, out: NoisedLatents | None) -> NoisedLatents:
    """Tensors for the results; x itself stands in where no kernel need write it."""
    out = out or NoisedLatents(None, None, None)

    def room(name: str) -> torch.Tensor:
        given = getattr(out, name)
        if given is None:
            return new_result(request.latents.shape, request.dtype, request.latents.device)
        check_output("add_noise", f"out.{name}", given, request.latents, request.dtype)
        return given

    kept = request.latents if request.is_kept() else None
    x0 = None
    if request.with_x0:
        x0 = kept if kept is not None and out.x0 is None else room("x0")
    target = None
    if request.with_target:
        keeps_target = request.prediction == "x0" and kept is not None and out.target is None
        target = kept if keeps_target else room("target")
    return NoisedLatents(room("z"), target, x0)


def _run_reference(request: AddNoiseRequest, results: NoisedLatents) -> None:
    compute = compute_dtype(request.latents)
    x0 = request.latents.to(compute)
    if request.logvar is not None:
        noise = draw_noise(request.posterior_noise, request.latents)
        x0 = reference.sample_posterior_reference(x0, request.logvar.to(compute), noise, request.scale)
    noise = draw_noise(request.noise, request.latents)
    z, target = reference.add_noise_reference(
        x0, request.alpha_bar, request.gamma_bar, noise, request.prediction, request.dependent_noise
    )
    for result, value in zip(results, (z, target, x0), strict=True):
        if result is not None and result is not request.latents:
            result.copy_(value)
