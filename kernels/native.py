"""The border to the C++ extension: tensors become pointers and strides, counters become integers.

The extension accepts any batch and frame strides but wants the rest of a frame contiguous; a tensor is copied only
where that does not hold, so slices of frames or samples are read in place.
"""

from typing import Any

import torch

from dydiff_kernels import backends
from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.registry import Operands
from dydiff_kernels.tables import TableRows

_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # DType in csrc/args.h
MAX_CHANNELS = 4096
"""ROW of csrc/rows.h: the most channels of what a kernel holds whole, a token or a head."""


def has_dense_frames(x: torch.Tensor) -> bool:
    """Whether the *rest of (B, S, *rest) is contiguous within each frame."""
    expected = 1
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def writable_in_place(x: torch.Tensor) -> bool:
    """Whether a kernel may write ``x``: dense frames, and no two samples or frames share memory."""
    return has_dense_frames(x) and all(
        stride != 0 or size <= 1 for size, stride in zip(x.shape, x.stride(), strict=True)
    )


def dense_frames(x: torch.Tensor) -> torch.Tensor:
    """``x``, or a contiguous copy where its frames are not dense."""
    return x if has_dense_frames(x) else x.contiguous()


def token_view(x: torch.Tensor) -> Any:
    """``x`` (three axes, contiguous channels) as kernels on tokens take it; ``x`` must outlive the call."""
    module = backends.cpp_module()
    assert module is not None and x.ndim == 4 and (x.stride(3) == 1 or x.shape[3] <= 1)
    return module.TokenView(x.data_ptr(), _DTYPE_CODES[x.dtype], *x.stride()[:3])


def shape(batch: int, frames: int, inner: int) -> Any:
    """The operand ``shape`` of a kernel, where it is not that of ``Operands.like``."""
    module = backends.cpp_module()
    assert module is not None
    return module.Shape(batch, frames, inner)


def run(kernel: str, operands: Operands) -> None:
    """Calls a kernel of the extension with torch's number of threads; what it writes must have dense frames.

    Its struct has a member for each operand. Numbers may be pointers; rows of a table, or a list of columns (B,),
    become a float32 table; what `token_view` has made is taken as it is; None stays absent.
    """
    module = backends.cpp_module()
    assert module is not None, "a C++ kernel has been chosen"
    args = getattr(module, f"{kernel}_args")()
    like = operands.like
    args.shape = module.Shape(like.shape[0], like.shape[1], like.shape[2:].numel())
    in_use = []  # what the pointers point into lives until the kernel returns
    for name, value in {**operands.others, **operands.writes}.items():
        if isinstance(value, NoiseCounter):
            counter = value.to("cpu")
            in_use.append(counter.sample_index)
            pointer = counter.sample_index.data_ptr()
            seed, step = int(counter.seed) % 2**64, int(counter.step)
            value = module.NoiseSource(seed, step, int(counter.stream), pointer)
        elif isinstance(value, torch.Tensor):
            in_use.append(dense_frames(value))
            value = module.FrameView(in_use[-1].data_ptr(), _DTYPE_CODES[value.dtype], *in_use[-1].stride()[:2])
        elif isinstance(value, TableRows):
            in_use.append(value.packed(like.shape[0]))
            value = in_use[-1].data_ptr()
        elif isinstance(value, list):
            in_use.append(torch.stack(value, dim=1).to("cpu", torch.float32).contiguous())
            value = in_use[-1].data_ptr()
        if value is not None:
            setattr(args, name, value)
    getattr(module, kernel)(args, torch.get_num_threads())
