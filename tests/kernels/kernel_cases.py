"""Shapes, dtypes, inputs and the comparison that the kernel tests share."""

import os

import torch

from dydiff_kernels import NoiseCounter, Stream

# Batch, frames, rest: ragged sizes, one frame, one element, no samples, frames longer than a row of the C++ kernels.
SHAPES = [(2, 5, 63), (3, 1, 123), (1, 7, 1), (2, 4, 3, 5, 7), (0, 3, 8), (2, 3, 2, 1100), (2, 3)]
if os.environ.get("TRITON_INTERPRET") == "1":  # the interpreter runs about 10,000 vector operations a second
    SHAPES = [(2, 3, 63), (1, 1, 123), (0, 3, 8), (1, 2, 2, 550)]
SHAPE_IDS = ["x".join(map(str, shape)) for shape in SHAPES]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Kernel and reference calculate in float32 and may differ in the last bit before they round to storage: there one unit
# in the last place of the storage type, 2**-23, 2**-7 and 2**-10 relative, times the few operations for float32.
RTOL = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
ATOL = {torch.float32: 2e-6, torch.bfloat16: 4e-6, torch.float16: 4e-6}


def assert_matches(actual: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    """Equal up to the rounding of the storage type; ``scale`` widens it by a known amplification of rounding."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    dtype = actual.dtype
    torch.testing.assert_close(actual.float(), expected.float(), rtol=RTOL[dtype] * scale, atol=ATOL[dtype] * scale)


def random_tensor(shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    """Standard normals from torch's generator, rounded to ``dtype``."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def levels(batch: int, low: float = 0.05, seed: int = 1) -> torch.Tensor:
    """Per-sample levels in [low, 1), float64."""
    return low + (1 - low) * torch.rand(batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counter(batch: int, step: int = 3, stream: Stream = Stream.DIFFUSION) -> NoiseCounter:
    """A counter with a 64-bit seed and indices beyond 32 bits."""
    return NoiseCounter(2**63 + 12345, torch.arange(batch) * (2**33 + 7) + 5, step, stream)


def non_contiguous(x: torch.Tensor) -> list[torch.Tensor]:
    """``x`` (B, S, *rest) as views with other strides: a slice of frames, and frames that are not dense."""
    sliced = torch.cat((x, x), 1)[:, : x.shape[1]]
    transposed = x.transpose(0, -1).contiguous().transpose(0, -1)
    return [sliced, transposed]
