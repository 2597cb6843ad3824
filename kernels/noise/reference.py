"""The specification of counter-based noise in plain torch: Philox4x32-10, uniforms, Box–Muller.

32-bit words live in int64 tensors, masked after each product; float64 carries the transform, so the normals are exact
to the last float32 bit up to double rounding.
"""

import math

import torch

from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.dtypes import compute_dtype

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
NUM_ROUNDS = 10
_WORD = 0xFFFFFFFF


def _multiply(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of the 64-bit product; int64 wraps around, which keeps all 64 bits."""
    product = word * multiplier
    return (product >> 32) & _WORD, product & _WORD


def philox_words(counter: NoiseCounter, num_blocks: int) -> torch.Tensor:
    """Philox output words (B, num_blocks, 4) as int64 in [0, 2³²): block i is counter word c0 = i."""
    index = counter.sample_index[:, None]
    c0 = torch.arange(num_blocks, device=index.device)[None].expand(len(index), -1)
    c1 = torch.zeros_like(c0) + counter.step
    c2 = (index & _WORD).expand_as(c0)
    c3 = ((index >> 32) | (int(counter.stream) << 24)).expand_as(c0)
    k0, k1 = counter.seed & _WORD, (counter.seed >> 32) & _WORD
    for _ in range(NUM_ROUNDS):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & _WORD, (k1 + KEY_INCREMENTS[1]) & _WORD
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _to_uniform(words: torch.Tensor) -> torch.Tensor:
    """(x + ½)·2⁻³² rounded to float32."""
    return ((words.double() + 0.5) * 2.0**-32).float()


def uniform_reference(counter: NoiseCounter, num: int) -> torch.Tensor:
    """Uniforms (B, num) float32 in (0, 1]; word i % 4 of block i // 4 belongs to element i."""
    words = philox_words(counter, -(-num // 4))
    return _to_uniform(words).flatten(1)[:, :num].contiguous()


def normal_reference(counter: NoiseCounter, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Normals of ``shape`` (B, *sample_shape): r cos 2πu₁ and r sin 2πu₁ with r = √(−2 ln u₀), on word pairs."""
    num = torch.Size(shape[1:]).numel()
    u = _to_uniform(philox_words(counter, -(-num // 4))).double()
    radius = (-2.0 * u[..., 0::2].log()).sqrt()
    angle = 2.0 * math.pi * u[..., 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)  # (B, blocks, pair, cos or sin)
    if dtype != torch.float64:
        pairs = pairs.float()
    return pairs.flatten(1)[:, :num].reshape(shape).to(dtype)


def draw_noise(noise: torch.Tensor | NoiseCounter, like: torch.Tensor) -> torch.Tensor:
    """``noise`` as a tensor like ``like``, in the dtype of the calculation."""
    compute = compute_dtype(like)
    if isinstance(noise, NoiseCounter):
        return normal_reference(noise.to(like.device), like.shape, compute)
    return noise.to(compute)


def draw_colored(noise: torch.Tensor | NoiseCounter, operator: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """L ε of ``noise``, ε, and the lower triangle L of ``operator`` (S, S); None is no operator."""
    white = draw_noise(noise, like)
    return white if operator is None else torch.einsum("sr,br...->bs...", operator.to(white.dtype).tril(), white)
