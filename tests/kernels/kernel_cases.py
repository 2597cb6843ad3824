"""Shapes, dtypes, inputs and the comparison that the kernel tests share."""

import os

import torch

from dydiff_kernels import Levels, NoiseCounter, Stream

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


def in_memory(numbers: NoiseCounter) -> NoiseCounter:
    """The same name with its seed and step in memory, as a recording has it."""
    seed, step = numbers.words()
    return NoiseCounter(seed, numbers.sample_index, step, numbers.stream)


def non_contiguous(x: torch.Tensor) -> list[torch.Tensor]:
    """``x`` (B, S, *rest) as views with other strides: a slice of frames, and frames that are not dense."""
    sliced = torch.cat((x, x), 1)[:, : x.shape[1]]
    transposed = x.transpose(0, -1).contiguous().transpose(0, -1)
    return [sliced, transposed]


OPERATORS = ["shared", "frames only", "noise only", "different"]


def operator_gammas(operators: str, batch: int, low: float = 0.05, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """γ̄ of the operators on frames and on noise, (B,) each; ones for the one that changes nothing."""
    frame_gamma, noise_gamma, ones = levels(batch, low, seed), levels(batch, low, seed + 1), torch.ones(batch).double()
    return {
        "shared": (frame_gamma, frame_gamma),
        "frames only": (frame_gamma, ones),
        "noise only": (ones, noise_gamma),
        "different": (frame_gamma, noise_gamma),
    }[operators]


def random_levels(batch: int, operators: str = "shared", seed: int = 1) -> Levels:
    """Factors of order 1 and of both signs for the target, and the operators' levels."""
    a, s, p, q = (levels(batch, seed=seed + i) for i in range(4))
    return Levels(2 * a, 2 * s, *operator_gammas(operators, batch, seed=seed + 4), p, -q)


def mixing_matrix(gamma_bar: torch.Tensor, frames: int) -> torch.Tensor:
    """The Dynamics operators as lower-triangular matrices (B, S, S), from their closed form, float64.

    D[s, r] = c^(s-r)·√γ̄, without √γ̄ in the first column; c = √(1-γ̄).
    """
    matrix = torch.zeros(len(gamma_bar), frames, frames, dtype=torch.float64)
    for s in range(frames):
        for r in range(s + 1):
            matrix[:, s, r] = (1 - gamma_bar) ** ((s - r) / 2) * (gamma_bar.sqrt() if r else 1.0)
    return matrix


def apply_matrix(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``matrix`` (B, S, S) on the frames of ``x`` (B, S, *rest)."""
    return torch.einsum("bsr,br...->bs...", matrix, x)


COLORED_SHAPES = SHAPES if os.environ.get("TRITON_INTERPRET") == "1" else [*SHAPES, (1, 64, 130)]


def random_operator(frames: int, dtype: torch.dtype = torch.float32, seed: int = 9) -> torch.Tensor:
    """A lower-triangular operator that about keeps the variance; what lies above its diagonal is never read."""
    operator = random_tensor((frames, frames), seed=seed).to(dtype) / frames**0.5
    return operator.tril() + torch.full((frames, frames), float("nan")).triu(1).to(dtype)


def scaled(factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One factor per sample, (B,), times ``x`` (B, ...)."""
    return factor.view(-1, *[1] * (x.ndim - 1)) * x
