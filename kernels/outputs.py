"""Where results go: into tensors that the caller gives as ``out``, or into new memory."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dydiff_kernels import backends
from dydiff_kernels.checks import check_no_grad
from dydiff_kernels.native import writable_in_place
from dydiff_kernels.registry import Op

LARGE_BYTES = 8 << 20
"""Results of so many bytes are worth a word to the system about their pages."""


def run_into(
    op: Op, backend: str, inputs: Iterable[object], arguments: Sequence[Any],
    *, wanted: Mapping[str, bool], out: Sequence[Tensor | None] | None, like: Tensor, dtype: torch.dtype,
) -> list[Tensor | None]:  # fmt: skip
    """Runs an op whose results are like ``like``; its kernels take, as their last argument, the list to write to.

    Args:
        op: its ``reference`` returns all results, in the dtype that it calculates in.
        backend, inputs: as for ``Op.select``.
        arguments: of the reference; the kernels take them too.
        wanted: the results by name; those that are not wanted come back as None and are not written.
        out: what the caller gives to overwrite.
        like: a tensor of the results' shape and device.
        dtype: storage type of the results.

    Raises:
        ValueError: an entry of ``out`` cannot take its result, or ``backend`` cannot run here.
    """
    given = [None] * len(wanted) if out is None else list(out)
    for name, tensor in zip(wanted, given, strict=True):
        if tensor is not None:
            _check_out(op.name, f"out.{name}", tensor, like, dtype)
    run = op.select(backend, inputs, dtype)
    places = zip(wanted.values(), given, strict=True)
    if run is op.reference:
        values = zip(run(*arguments), places, strict=True)
        return [None if not want else v.to(dtype) if to is None else to.copy_(v) for v, (want, to) in values]
    results = [
        None if not want else new_result(like.shape, dtype, like.device) if to is None else to for want, to in places
    ]
    run(*arguments, results)
    return results


def _check_out(op: str, name: str, x: Tensor, like: Tensor, dtype: torch.dtype) -> None:
    if x.shape != like.shape or x.dtype != dtype or x.device != like.device:
        found, expected = (tuple(x.shape), x.dtype, x.device), (tuple(like.shape), dtype, like.device)
        raise ValueError(f"{op}: {name} has shape, dtype, device {found}; expected {expected}")
    check_no_grad(op, name, x)
    if not writable_in_place(x):
        raise ValueError(f"{op}: {name} has strides {x.stride()}; expected contiguous frames and no shared memory")


def channels_contiguous(x: Tensor) -> Tensor:
    """``x``, or a contiguous copy where its last axis is not contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def new_result(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """An uninitialised contiguous tensor.

    On a CPU, writing new memory costs more in page faults than in bandwidth, so large tensors ask for huge pages.
    """
    result = torch.empty(shape, dtype=dtype, device=device)
    cpp = backends.cpp_module()
    if result.device.type == "cpu" and result.nbytes >= LARGE_BYTES and cpp is not None:
        cpp.advise_huge_pages(result.data_ptr(), result.nbytes)
    return result
