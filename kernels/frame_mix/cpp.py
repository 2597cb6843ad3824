"""Binding of the C++ frame filters."""

from typing import TYPE_CHECKING

import torch

from dydiff_kernels import native
from dydiff_kernels.frame_mix.reference import frame_coefficients
from dydiff_kernels.memory import new_result

if TYPE_CHECKING:
    from dydiff_kernels.frame_mix import FrameFilter


def frame_filter(x: torch.Tensor, gamma_bar: torch.Tensor, kind: "FrameFilter", inplace: bool) -> torch.Tensor:
    """Filter ``kind`` of ``x`` (B, S, *rest) on the CPU, into a new contiguous tensor or into ``x``."""
    source = native.dense_frames(x)
    out = x if inplace and native.writable_in_place(x) else new_result(x.shape, x.dtype, x.device)
    table = native.float_table(list(frame_coefficients(gamma_bar)))
    native.cpp_module().frame_filter(
        int(kind),
        native.frame_shape(x),
        table.data_ptr(),
        native.frame_view(source),
        native.frame_view(out),
        native.num_threads(),
    )
    return x.copy_(out) if inplace and out is not x else out
