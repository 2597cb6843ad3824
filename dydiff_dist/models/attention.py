"""Attention over one token axis, with queries and keys normalised and rotated by position.

Letters: B batch (any axes folded into one), H heads, N tokens, E channels per head, P positions' coordinates.
"""

import logging
import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

logger = logging.getLogger(__name__)

AttentionFunction = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""(q, k, v each (B, H, N, E), causal) -> (B, H, N, E)."""


def reference_attention(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, causal: bool) -> Tensor:
    """softmax(q kᵀ / √E) v, written out in float32; the specification of the other backends."""
    scores = (q_BHNE.float() @ k_BHNE.float().transpose(-1, -2)) / math.sqrt(q_BHNE.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return (scores.softmax(-1) @ v_BHNE.float()).to(v_BHNE.dtype)


def sdpa_attention(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, causal: bool) -> Tensor:
    """torch's scaled_dot_product_attention."""
    return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, is_causal=causal)


def xformers_attention(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, causal: bool) -> Tensor:
    """xformers' memory_efficient_attention (GPUs only)."""
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    q, k, v = (t.transpose(1, 2).contiguous() for t in (q_BHNE, k_BHNE, v_BHNE))
    return memory_efficient_attention(q, k, v, attn_bias=LowerTriangularMask() if causal else None).transpose(1, 2)


_BACKENDS: dict[str, AttentionFunction] = {
    "reference": reference_attention,
    "sdpa": sdpa_attention,
    "xformers": xformers_attention,
}


@cache
def _has_xformers() -> bool:
    try:
        import xformers.ops  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def resolve_attention(name: str, device_type: str) -> AttentionFunction:
    """The attention function called ``name`` on ``device_type``; ``auto`` chooses and logs its choice once.

    Raises:
        ValueError: xformers was asked for on a CPU or is not installed.
    """
    if name == "xformers" and (device_type != "cuda" or not _has_xformers()):
        raise ValueError(
            f"model.attention_backend is 'xformers', which needs a GPU (device is {device_type}) and the package "
            "(pip install 'dydiff_dist[gpu]'); choose 'auto' or 'sdpa'"
        )
    if name == "auto":
        name = "xformers" if device_type == "cuda" and _has_xformers() else "sdpa"
        logger.info("attention backend: %s (chosen for %s)", name, device_type)
    return _BACKENDS[name]


def rotary_angles(coordinates_NP: Tensor, num_channels: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (Su et al. 2021, eq. 34), axis by axis.

    Args:
        coordinates_NP: position of each token on each of P axes.
        num_channels: E; shared between the axes in cosine-sine pairs, the first axes taking what does not divide.

    Returns:
        Two float32 tensors (N, E / 2).
    """
    num_axes, num_pairs = coordinates_NP.shape[1], num_channels // 2
    shares = [num_pairs // num_axes + (axis < num_pairs % num_axes) for axis in range(num_axes)]
    angles = [
        coordinates_NP[:, axis, None].float()
        * base ** (-torch.arange(share, device=coordinates_NP.device, dtype=torch.float32) / max(share, 1))
        for axis, share in enumerate(shares)
    ]
    angles_NE = torch.cat(angles, dim=1)
    return angles_NE.cos(), angles_NE.sin()


def rotate(x_BHNE: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates channel pairs (e, e + E/2) of every token by its angles."""
    cos, sin = (angle.to(x_BHNE.dtype) for angle in angles)
    first, second = x_BHNE.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention with query-key normalisation (Dehghani et al. 2023) and rotary positions."""

    def __init__(self, width: int, num_heads: int, backend: str, causal: bool = False):
        super().__init__()
        self.num_heads, self.backend, self.causal = num_heads, backend, causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = nn.LayerNorm(width // num_heads, eps=1e-6, bias=False)
        self.norm_k = nn.LayerNorm(width // num_heads, eps=1e-6, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """(B, N, D) -> (B, N, D); ``angles`` from `rotary_angles`, each (N, E / 2)."""
        attend = resolve_attention(self.backend, x_BND.device.type)
        q, k, v = rearrange(self.qkv(x_BND), "b n (three h e) -> three b h n e", three=3, h=self.num_heads)
        q, k = rotate(self.norm_q(q), angles), rotate(self.norm_k(k), angles)
        return self.project(rearrange(attend(q, k, v, self.causal), "b h n e -> b n (h e)"))
