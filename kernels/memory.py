"""Memory for results. On a CPU, writing a large new tensor costs more in page faults than in bandwidth."""

import torch

from dydiff_kernels.backends import cpp_module

_LARGE_BYTES = 8 << 20


def new_result(shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """An uninitialised contiguous tensor; large ones on a CPU ask for huge pages (512 times fewer faults)."""
    result = torch.empty(shape, dtype=dtype, device=device)
    if result.device.type == "cpu" and result.nbytes >= _LARGE_BYTES and cpp_module() is not None:
        cpp_module().advise_huge_pages(result.data_ptr(), result.nbytes)
    return result
