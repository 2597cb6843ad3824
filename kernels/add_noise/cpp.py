"""Binding of the C++ ``add_noise``."""

from typing import TYPE_CHECKING

import torch

from dydiff_kernels import native

if TYPE_CHECKING:
    from dydiff_kernels.add_noise import AddNoiseRequest, NoisedLatents


def add_noise(request: "AddNoiseRequest", results: "NoisedLatents") -> None:
    """Fills ``results`` on the CPU."""
    module = native.cpp_module()
    latents = native.dense_frames(request.latents)
    logvar = None if request.logvar is None else native.dense_frames(request.logvar)
    table = native.float_table(request.coefficients())
    args = module.AddNoiseArgs()
    args.shape = native.frame_shape(latents)
    args.coefficients = table.data_ptr()
    args.prediction = module.Prediction.__members__[request.prediction]
    args.latents, args.logvar = native.frame_view(latents), native.frame_view(logvar)
    args.posterior_noise, posterior_alive = native.noise_source(request.posterior_noise)
    args.noise, noise_alive = native.noise_source(request.noise)
    args.scale = request.scale
    args.z = native.frame_view(results.z)
    args.target = native.frame_view(_unless(results.target, request.latents))
    args.x0 = native.frame_view(_unless(results.x0, request.latents))
    module.add_noise(args, native.num_threads())
    del posterior_alive, noise_alive, table


def _unless(result: torch.Tensor | None, latents: torch.Tensor) -> torch.Tensor | None:
    """``result``, or None where it is the latents tensor itself and need not be written."""
    return None if result is latents else result
