"""Binding of the C++ normals."""

import torch

from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.memory import new_result
from dydiff_kernels.native import DTYPE_CODES, cpp_module, noise_key, num_threads


def normal(counter: NoiseCounter, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Normals of ``shape`` (B, *sample_shape) on the CPU."""
    out = new_result(shape, dtype, "cpu")
    per_sample = torch.Size(shape[1:]).numel()
    cpp_module().normal(noise_key(counter), shape[0], per_sample, out.data_ptr(), DTYPE_CODES[dtype], num_threads())
    return out
