"""The border to the C++ extension: tensors become pointers and strides, counters become integers.

The extension accepts any batch and frame strides but wants the rest of a frame contiguous; a tensor is copied only
where that does not hold, so slices of frames or samples are read in place.
"""

from types import ModuleType
from typing import Any

import torch

from dydiff_kernels import backends
from dydiff_kernels.counter import NoiseCounter

_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # DType in csrc/args.h


def extension() -> ModuleType:
    """The compiled extension, where a kernel of it has been chosen."""
    module = backends.cpp_module()
    assert module is not None
    return module


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


def float_table(columns: list[torch.Tensor]) -> torch.Tensor:
    """Per-sample coefficients (B,) each, float64, as one contiguous float32 table (B, K) on the CPU."""
    return torch.stack(columns, dim=1).to("cpu", torch.float32).contiguous()


def run(kernel: str, shape_of: torch.Tensor, **fields: Any) -> None:
    """Calls a kernel of the extension with torch's number of threads.

    Args:
        kernel: the function's name in the extension.
        shape_of: a tensor (B, S, *rest) of the kernel's shape.
        fields: members of the C++ struct that it takes: tensors (B, S, *rest), ``NoiseCounter``, numbers, or pointers
            as integers; None stays absent. What the kernel writes must have dense frames.
    """
    module = extension()
    args = getattr(module, f"{kernel}_args")()
    args.shape = module.Shape(shape_of.shape[0], shape_of.shape[1], shape_of.shape[2:].numel())
    in_use = []  # what the pointers point into lives until the kernel returns
    for name, value in fields.items():
        if isinstance(value, NoiseCounter):
            counter = value.to("cpu")
            in_use.append(counter.sample_index)
            pointer = counter.sample_index.data_ptr()
            value = module.NoiseSource(counter.seed, counter.step, int(counter.stream), pointer)
        elif isinstance(value, torch.Tensor):
            dense = dense_frames(value)
            in_use.append(dense)
            value = module.FrameView(dense.data_ptr(), _DTYPE_CODES[dense.dtype], dense.stride(0), dense.stride(1))
        if value is not None:
            setattr(args, name, value)
    getattr(module, kernel)(args, torch.get_num_threads())
