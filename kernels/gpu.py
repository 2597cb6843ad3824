"""What the Triton launchers share: contiguous operands, counter words, and the shape of a launch.

A program owns BLOCK elements of a frame of one sample and walks the frames, so the state of the frame recurrence stays
in registers and every element is read and written once. Offsets are 64-bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl

from dydiff_kernels.counter import NoiseCounter

MAX_BLOCK = 1024
NUM_WARPS = 4  # 8 elements a thread at MAX_BLOCK: two 128-bit loads of float32, one of 16-bit types


@dataclass(frozen=True)
class AotCase:
    """One specialisation of a kernel to compile ahead of time (``aot.py``).

    Args:
        name: the row's name in the table.
        kernel: the jitted function.
        reads, writes: pointers to tensors that are present. Other arguments named ``*_ptr`` are None.
        scalars: further pointers, to float32 numbers, or to int64 where they are named ``*_index_ptr``.
        constants: compile-time constants.
        floats: numbers that are float32; other numbers are int32.
    """

    name: str
    kernel: Any
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    scalars: tuple[str, ...] = ("table_ptr",)
    constants: Mapping[str, Any] = field(default_factory=dict)
    floats: tuple[str, ...] = ()


def block_size(inner: int) -> int:
    """Elements of a frame that one program owns."""
    return max(128, min(MAX_BLOCK, triton.next_power_of_2(inner)))


def launch_shape(x: torch.Tensor) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and the size arguments that every kernel takes, for ``x`` (B, S, *rest)."""
    inner = x.shape[2:].numel()
    block = block_size(inner)
    grid = (x.shape[0] * triton.cdiv(inner, block),)
    return grid, dict(S=x.shape[1], R=inner, BLOCK=block, num_warps=NUM_WARPS)


def launch(kernel: Any, shape_of: torch.Tensor, writes: Mapping[str, torch.Tensor | None], **arguments: Any) -> None:
    """Launches ``kernel`` over ``shape_of`` (B, S, *rest).

    Kernels use one offset for all operands: what is not contiguous goes through contiguous memory.

    Args:
        kernel: the jitted function; it takes S, R and BLOCK.
        shape_of: a tensor of the operands' shape.
        writes: the results to write, by the names of their pointers.
        arguments: all others; tensors may have any strides.
    """
    if not shape_of.numel():
        return
    grid, sizes = launch_shape(shape_of)
    written = {
        name: out if out is None or out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
        for name, out in writes.items()
    }
    read = {name: value.contiguous() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    kernel[grid](**read, **written, **sizes)
    for result, out in zip(written.values(), writes.values(), strict=True):
        if out is not None and result is not None and result is not out:
            out.copy_(result)


@triton.jit
def program_block(R, BLOCK: tl.constexpr):
    """What this program owns of frames of R elements: sample b, first element, and all its elements [BLOCK], int64."""
    num_blocks = tl.cdiv(R, BLOCK)
    b = (tl.program_id(0) // num_blocks).to(tl.int64)
    start = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK
    return b, start, start + tl.arange(0, BLOCK)


@triton.jit
def offset_in_sample(s, R, start):
    """Number of element ``start`` of frame ``s`` within its sample, int64; the noise is counted by it."""
    return s * tl.cast(R, tl.int64) + start


def coefficient_table(columns: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Per-sample coefficients (B,) each, float64, as one contiguous float32 table (B, K) on ``device``."""
    return torch.stack(columns, dim=1).to(device, torch.float32).contiguous()


def _as_int32(word: int) -> int:
    """The bits of a 32-bit word as a signed integer, the one integer type that launches always pass the same way."""
    return word - 2**32 if word >= 2**31 else word


def noise_arguments(
    noise: torch.Tensor | NoiseCounter | None, device: torch.device, prefix: str = "noise"
) -> dict[str, Any]:
    """Kernel arguments for noise: a pointer where it is given, counter words where it is to be drawn."""
    given = noise if isinstance(noise, torch.Tensor) else None
    arguments = {f"{prefix}_ptr": given, f"{prefix}_index_ptr": None, f"{prefix}_stream": 0}
    words = dict(zip((f"{prefix}_key0", f"{prefix}_key1", f"{prefix}_step"), (0, 0, 0), strict=True))
    if isinstance(noise, NoiseCounter):
        arguments[f"{prefix}_index_ptr"] = noise.to(device).sample_index
        arguments[f"{prefix}_stream"] = int(noise.stream)
        values = (noise.seed & 0xFFFFFFFF, noise.seed >> 32, noise.step)
        words = dict(zip(words, map(_as_int32, values), strict=True))
    return arguments | words
