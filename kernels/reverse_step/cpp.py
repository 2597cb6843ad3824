"""Binding of the C++ ``reverse_step``."""

from typing import TYPE_CHECKING

import torch

from dydiff_kernels import native

if TYPE_CHECKING:
    from dydiff_kernels.reverse_step import ReverseStep, ReverseStepRequest


def reverse_step(request: "ReverseStepRequest", results: "ReverseStep") -> None:
    """Fills ``results`` on the CPU."""
    module = native.cpp_module()
    names = ("z", "output", "uncond_output", "x0_prev", "history")
    inputs = {name: _dense(getattr(request, name)) for name in names}
    table = native.float_table(request.columns())
    args = module.ReverseStepArgs()
    args.shape = native.frame_shape(request.z)
    args.coefficients = table.data_ptr()
    args.prediction = module.Prediction.__members__[request.prediction]
    args.dependent_noise = request.dependent_noise
    for name, tensor in inputs.items():
        setattr(args, name, native.frame_view(tensor))
    args.history_frames = 0 if request.history is None else request.history.shape[1]
    args.noise, noise_alive = native.noise_source(request.noise)
    args.z_next, args.x0 = native.frame_view(results.z), native.frame_view(results.x0)
    module.reverse_step(args, native.num_threads())
    del noise_alive, table


def _dense(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else native.dense_frames(x)
