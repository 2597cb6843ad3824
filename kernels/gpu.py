"""What the Triton launchers share: contiguous operands, counter words, and the shape of a launch.

A program owns BLOCK elements of a frame of one sample and walks the frames, so the state of the frame recurrence stays
in registers and every element is read and written once. Offsets are 64-bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl

from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.registry import Operands
from dydiff_kernels.tables import TableRows

MAX_BLOCK = 1024
MAX_COLORED = 16 * MAX_BLOCK
"""Elements of all frames together that a program may hold, 128 registers of a thread; blocks of up to 16 frames are as
large as of one."""
NUM_WARPS = 4  # 8 elements a thread at MAX_BLOCK: two 128-bit loads of float32, one of 16-bit types


TABLE = ("coefficients_ptr", "coefficients_index_ptr")
"""Pointers of a table of coefficients and of the samples' rows in it."""


@dataclass(frozen=True)
class AotCase:
    """One specialisation of a kernel to compile ahead of time (``aot.py``).

    Args:
        name: the row's name in the table.
        kernel: the jitted function.
        reads, writes: pointers to tensors that are present. Other arguments named ``*_ptr`` are None.
        scalars: further pointers, to float32 numbers, to int64 where they are named ``*_index_ptr``, to float64 for
            ``gamma_bar_ptr``, or to int32 for words of a counter that lie in memory.
        constants: compile-time constants.
        floats: numbers that are float32; other numbers are int32.
        divisible: numbers that are a multiple of 16 in the launch that the case stands for.
        num_warps: of a program; where it depends on the storage type, a function of its bytes.
        num_stages: of the pipelines that the compiler makes of loops.
    """

    name: str
    kernel: Any
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    scalars: tuple[str, ...] = ("coefficients_ptr",)
    constants: Mapping[str, Any] = field(default_factory=dict)
    floats: tuple[str, ...] = ()
    divisible: tuple[str, ...] = ("R",)
    num_warps: int | Callable[[int], int] = NUM_WARPS
    num_stages: int = 3


def launch_shape(x: torch.Tensor, max_block: int = MAX_BLOCK) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and the size arguments that every kernel takes, for ``x`` (B, S, *rest)."""
    inner = x.shape[2:].numel()
    block = max(128, min(max_block, triton.next_power_of_2(inner)))  # elements of a frame that one program owns
    grid = (x.shape[0] * triton.cdiv(inner, block),)
    return grid, dict(S=x.shape[1], R=inner, BLOCK=block, num_warps=NUM_WARPS)


def launch(kernel: Any, operands: Operands) -> None:
    """Launches ``kernel`` over a shape (B, S, *rest).

    An operand ``x`` is the argument ``x_ptr`` where it is a tensor or a table (then with its samples' rows), the
    constant ``X`` where the kernel has that, else ``x``; noise is ``noise_ptr`` or the words of its counter. Kernels
    use one offset for all tensors: other strides go through contiguous memory. They take S, R and BLOCK, and ALIGNED
    where they draw noise; FRAMES, at least S, where an operator may act on all frames of it (else 1).
    """
    like, names = operands.like, kernel.arg_names
    if not like.numel():
        return
    arguments: dict[str, Any] = {}
    for name, value in operands.others.items():
        if f"{name}_key0" in names:
            arguments |= _noise_arguments(value, like.device, name)
        elif f"{name}_row" in names:
            arguments |= _table_arguments(value, like.device, name)
        elif f"{name}_ptr" in names:
            arguments[f"{name}_ptr"] = None if value is None else value.contiguous()
        else:
            arguments[name.upper() if name.upper() in names else name] = value
    if "ALIGNED" in names:
        arguments["ALIGNED"] = like.shape[1] == 1 or like.shape[2:].numel() % 4 == 0
    frames = triton.next_power_of_2(like.shape[1]) if operands.others.get("noise_operator") is not None else 1
    if "FRAMES" in names:
        arguments["FRAMES"] = frames
    grid, sizes = launch_shape(like, min(MAX_BLOCK, MAX_COLORED // frames))
    written, strided = {f"{name}_ptr": out for name, out in operands.writes.items()}, []
    for name, out in written.items():
        if out is not None and not out.is_contiguous():
            contiguous = torch.empty_like(out, memory_format=torch.contiguous_format)
            written[name] = contiguous
            strided.append((out, contiguous))
    kernel[grid](**arguments, **written, **sizes)
    for out, contiguous in strided:
        out.copy_(contiguous)


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


@triton.jit
def table_row(index_ptr, row, b):
    """Number of the row of sample ``b``: by its entry in ``index_ptr``, else ``row``, else (-1) its own."""
    if index_ptr is not None:
        number = tl.load(index_ptr + b).to(tl.int64)
    else:
        number = tl.where(row >= 0, row, b).to(tl.int64)
    return number


def _table_arguments(value: TableRows | list[torch.Tensor] | None, device: torch.device, name: str) -> dict[str, Any]:
    """Kernel arguments for rows of a table, or for columns (B,) of which one is made."""
    table: torch.Tensor | None = None
    index: torch.Tensor | None = None
    row = -1
    if isinstance(value, list):
        table = torch.stack(value, dim=1).to(device, torch.float32).contiguous()
    elif value is not None:
        table = value.table.on(device)
        if isinstance(value.rows, int):
            row = value.rows
        else:
            index = value.rows.to(device)
    return {f"{name}_ptr": table, f"{name}_index_ptr": index, f"{name}_row": row}


def _as_int32(word: int) -> int:
    """The bits of a 32-bit word as a signed integer, the one integer type that launches always pass the same way."""
    return word - 2**32 if word >= 2**31 else word


def _words(noise: NoiseCounter) -> tuple[int | torch.Tensor, ...]:
    """Both halves of the seed, and the step: numbers, or the int32 in memory that they are."""
    if isinstance(noise.seed, torch.Tensor) and isinstance(noise.step, torch.Tensor):
        low_first = [word.reshape(1).view(torch.int32) for word in (noise.seed, noise.step)]
        return low_first[0][:1], low_first[0][1:], low_first[1][:1]
    seed, step = int(noise.seed), int(noise.step)
    return _as_int32(seed & 0xFFFFFFFF), _as_int32(seed >> 32), _as_int32(step)


def _noise_arguments(noise: torch.Tensor | NoiseCounter | None, device: torch.device, name: str) -> dict[str, Any]:
    """Kernel arguments for noise: a pointer where it is given, counter words where it is to be drawn."""
    index: torch.Tensor | None = None
    words: tuple[int | torch.Tensor, ...] = (0, 0, 0)
    stream = 0
    if isinstance(noise, NoiseCounter):
        noise = noise.to(device)
        index, words, stream = noise.sample_index, _words(noise), int(noise.stream)
    given = noise.contiguous() if isinstance(noise, torch.Tensor) else None
    suffixes = ("_ptr", "_index_ptr", "_key0", "_key1", "_step", "_stream")
    return {f"{name}{suffix}": value for suffix, value in zip(suffixes, (given, index, *words, stream), strict=True)}
