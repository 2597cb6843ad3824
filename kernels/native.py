"""The border to the C++ extension: tensors become (pointer, dtype, batch and frame strides), counters become integers.

The extension accepts any batch and frame strides but wants the rest of a frame contiguous; ``frame_view`` copies a
tensor only where that does not hold, so slices of frames or samples are read in place.
"""

import torch

from dydiff_kernels.backends import cpp_module
from dydiff_kernels.counter import NoiseCounter

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # DType in csrc/args.h


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


def frame_shape(x: torch.Tensor):
    """(B, S, elements per frame) for the extension."""
    return cpp_module().Shape(x.shape[0], x.shape[1], x.shape[2:].numel())


def frame_view(x: torch.Tensor | None):
    """Pointer, dtype and strides of ``x`` (dense frames) for the extension; an empty view for None."""
    if x is None:
        return cpp_module().FrameView()
    return cpp_module().FrameView(x.data_ptr(), DTYPE_CODES[x.dtype], x.stride(0), x.stride(1))


def noise_key(counter):
    """Key and counter words of a ``NoiseCounter`` on the CPU; its contiguous ``sample_index`` must stay alive."""
    index = counter.sample_index
    assert index.device.type == "cpu" and index.is_contiguous()
    return cpp_module().NoiseKey(counter.seed, counter.step, int(counter.stream), index.data_ptr())


def noise_source(noise: torch.Tensor | NoiseCounter | None):
    """Noise for the extension, and the tensor that must stay alive while it is used."""
    if isinstance(noise, NoiseCounter):
        counter = noise.to("cpu")
        return cpp_module().NoiseSource(noise_key(counter), cpp_module().FrameView()), counter.sample_index
    given = None if noise is None else dense_frames(noise)
    return cpp_module().NoiseSource(cpp_module().NoiseKey(), frame_view(given)), given


def float_table(columns: list[torch.Tensor]) -> torch.Tensor:
    """Per-sample coefficients (B,) each, float64, as one contiguous float32 table (B, K) on the CPU."""
    return torch.stack(columns, dim=1).to("cpu", torch.float32).contiguous()


def num_threads() -> int:
    """Threads for the extension: torch's own setting."""
    return torch.get_num_threads()
