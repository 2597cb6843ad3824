"""Where results go: into tensors that the caller gives as ``out``, or into new memory."""

from collections.abc import Sequence

import torch

from dydiff_kernels import backends
from dydiff_kernels.checks import check_no_grad
from dydiff_kernels.native import writable_in_place

_LARGE_BYTES = 8 << 20


def check_out(
    op: str, names: Sequence[str], out: Sequence[torch.Tensor | None] | None, like: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor | None, ...]:
    """The entries of ``out``, None for each where it is None.

    Raises:
        ValueError: an entry that cannot take a result like ``like``, stored as ``dtype``, by a kernel's writes.
    """
    if out is None:
        return (None,) * len(names)
    for name, x in zip(names, out, strict=True):
        if x is None:
            continue
        if x.shape != like.shape or x.dtype != dtype or x.device != like.device:
            found, expected = (tuple(x.shape), x.dtype, x.device), (tuple(like.shape), dtype, like.device)
            raise ValueError(f"{op}: out.{name} has shape, dtype, device {found}; expected {expected}")
        check_no_grad(op, f"out.{name}", x)
        if not writable_in_place(x):
            raise ValueError(
                f"{op}: out.{name} has strides {x.stride()}; expected contiguous frames and no shared memory"
            )
    return tuple(out)


def new_result(
    shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """An uninitialised contiguous tensor.

    On a CPU, writing new memory costs more in page faults than in bandwidth, so large tensors ask for huge pages.
    """
    result = torch.empty(shape, dtype=dtype, device=device)
    cpp = backends.cpp_module()
    if result.device.type == "cpu" and result.nbytes >= _LARGE_BYTES and cpp is not None:
        cpp.advise_huge_pages(result.data_ptr(), result.nbytes)
    return result


def given_or_new(given: torch.Tensor | None, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor for a kernel to write: ``given``, or a new one like ``like``."""
    return new_result(like.shape, dtype, like.device) if given is None else given


def deliver(value: torch.Tensor, given: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """A reference's result in its storage type: ``value`` itself, or ``given`` with the value copied into it."""
    return value.to(dtype) if given is None else given.copy_(value)
