"""Attention over one token axis, with queries and keys normalised and rotated by position.

Letters: B batch (any axes folded into one), H heads, N tokens, E channels per head, P positions' coordinates.
"""

import importlib
import logging
import math
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dydiff_dist.models.sequence_parallel import SequenceGroup
from dydiff_kernels import Backend, HeadNorm, attention_inputs, has_short_attention, short_attention

logger = logging.getLogger(__name__)

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v), each (B, H, N, E) -> (B, H, N, E)."""

_SDPA_KERNELS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_math": SDPBackend.MATH,
}


def reference_attention(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor) -> Tensor:
    """softmax(q kᵀ / √E) v, written out in float32 or better; the specification of the other backends."""
    dtype = torch.promote_types(q_BHNE.dtype, torch.float32)
    scores = (q_BHNE.to(dtype) @ k_BHNE.to(dtype).transpose(-1, -2)) / math.sqrt(q_BHNE.shape[-1])
    return (scores.softmax(-1) @ v_BHNE.to(dtype)).to(v_BHNE.dtype)


def sdpa_attention(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor) -> Tensor:
    """torch's scaled_dot_product_attention; torch picks its kernel."""
    return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE)


def _sdpa_with(kernel: SDPBackend, q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor) -> Tensor:
    with sdpa_kernel(kernel):
        return sdpa_attention(q_BHNE, k_BHNE, v_BHNE)


def xformers_attention(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor) -> Tensor:
    """xformers' memory_efficient_attention (GPUs only). It takes (B, N, H, E), of which E alone must be contiguous."""
    from xformers.ops import memory_efficient_attention

    q, k, v = (t.transpose(1, 2) for t in (q_BHNE, k_BHNE, v_BHNE))
    return memory_efficient_attention(q, k, v).transpose(1, 2)


_BACKENDS: dict[str, AttentionFunction] = {
    "reference": reference_attention,
    "sdpa": sdpa_attention,
    "xformers": xformers_attention,
    **{name: partial(_sdpa_with, kernel) for name, kernel in _SDPA_KERNELS.items()},
}


def _probe_inputs(device_type: str, dtype: torch.dtype, head_width: int) -> list[Tensor]:
    """Queries, keys and values of one head, small, on the device."""
    return [torch.ones(1, 1, 16, head_width, device=device_type, dtype=dtype, requires_grad=True) for _ in range(3)]


@cache
def xformers_failure(device_type: str, dtype: torch.dtype, head_width: int) -> str | None:
    """What keeps xformers from running, found by a small forward and backward pass; None if it runs.

    An installed package is not a working one: built for another torch, it imports and has no operators.
    """
    try:
        importlib.import_module("xformers")
        inputs = _probe_inputs(device_type, dtype, head_width)
        torch.autograd.grad(xformers_attention(*inputs).sum(), inputs)
    except Exception as error:  # whatever a broken build raises
        if isinstance(error, ModuleNotFoundError) and error.name == "xformers":
            return "is not installed (pip install 'dydiff_dist[gpu]')"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"is installed but does not run beside torch {torch.__version__} here ({reason})"
    return None


def _why_not(name: str, device_type: str, dtype: torch.dtype, head_width: int) -> str | None:
    """What keeps the backend ``name`` from running here; None if nothing does."""
    on_gpu, is_half = device_type == "cuda", dtype in (torch.bfloat16, torch.float16)
    if name in ("xformers", "sdpa_efficient", "sdpa_cudnn") and not on_gpu:
        return f"needs a GPU, the device is {device_type}"
    if name == "xformers" and head_width % (8 if is_half else 4):
        # its kernels load 16 bytes at once
        return f"takes heads of a multiple of {8 if is_half else 4} channels in {dtype}, here they have {head_width}"
    if name == "xformers" and not is_half and torch.cuda.get_device_capability() > (9, 0):
        return "has no float32 kernel for this GPU"
    if name == "xformers":
        return xformers_failure(device_type, dtype, head_width)
    if name in ("sdpa_flash", "sdpa_cudnn") and on_gpu and not is_half:
        return f"takes bfloat16 or float16, the network is {dtype}"
    return None


@cache
def resolve_attention(
    name: str, device_type: str, dtype: torch.dtype = torch.float32, head_width: int = 64
) -> AttentionFunction:
    """The attention function called ``name``; ``auto`` chooses and logs its choice once.

    Args:
        name: a backend, or ``auto``: xformers where a small pass of it runs, torch's SDPA elsewhere.
        device_type: ``cpu`` or ``cuda``.
        dtype: of queries, keys and values.
        head_width: channels of a head, E.

    Raises:
        ValueError: the backend cannot run here; it says why.
    """
    if name == "auto":
        refused = _why_not("xformers", device_type, dtype, head_width)
        name = "sdpa" if refused else "xformers"
        but = f"; xformers {refused}" if refused and refused.startswith("is installed") else ""
        logger.info("attention: %s, chosen for %s in %s%s", name, device_type, str(dtype).removeprefix("torch."), but)
    elif refused := _why_not(name, device_type, dtype, head_width):
        raise ValueError(f"execution.attention_backend {name!r} {refused}; choose 'auto' or 'sdpa'")
    return _BACKENDS[name]


def rotary_angles(coordinates_NP: Tensor, num_channels: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (Su et al. 2021, eq. 34), axis by axis.

    Args:
        coordinates_NP: position of each token on each of P axes.
        num_channels: E; its E/2 pairs are shared between the axes, the first axes taking what does not divide.

    Returns:
        Two float32 tensors (N, E/2): of the angle by which channels e and e + E/2 turn.
    """
    num_axes, num_pairs = coordinates_NP.shape[1], num_channels // 2
    shares = [num_pairs // num_axes + (axis < num_pairs % num_axes) for axis in range(num_axes)]
    angles = torch.cat(
        [
            coordinates_NP[:, axis, None].float()
            * base ** (-torch.arange(share, device=coordinates_NP.device, dtype=torch.float32) / max(share, 1))
            for axis, share in enumerate(shares)
        ],
        dim=1,
    )
    return angles.cos(), angles.sin()


def _query_key_norm(name: HeadNorm, head_width: int) -> nn.Module:
    """Holds the scales of the norm of queries or of keys over the channels of a head; `attention_inputs` calculates it.

    Named and initialised as torch's own, so that weights keep the names they have."""
    if name == "none":
        return nn.Identity()
    return nn.RMSNorm(head_width) if name == "rms" else nn.LayerNorm(head_width, bias=False)


class Attention(nn.Module):
    """Multi-head self-attention with query-key normalisation (Dehghani et al. 2023) and rotary positions.

    Args:
        width: D, channels of a token.
        num_heads: H.
        qk_norm: of queries and keys per head: layer, rms or none.
        spans_frames: whether its tokens are of several frames, which ranks may share.

    Attributes:
        sequence: the ranks that share the token axis; this one alone unless `share_tokens` sets it.
    """

    def __init__(self, width: int, num_heads: int, *, qk_norm: HeadNorm = "layer", spans_frames: bool = True):
        super().__init__()
        self.num_heads, self.spans_frames, self.sequence = num_heads, spans_frames, SequenceGroup()
        self.qk_norm: HeadNorm = qk_norm
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = _query_key_norm(qk_norm, width // num_heads)
        self.norm_k = _query_key_norm(qk_norm, width // num_heads)
        self.project = nn.Linear(width, width)

    def forward(
        self,
        x_BND: Tensor,
        angles: tuple[Tensor, Tensor],
        attend: AttentionFunction,
        kernels: Backend = "auto",
        *,
        fuses_short: bool = False,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D).

        Args:
            x_BND: this rank's tokens.
            angles: of these tokens, from `rotary_angles`, each (N, E/2).
            attend: from `resolve_attention`.
            kernels: backend of `attention_inputs` and `short_attention`.
            fuses_short: whether `short_attention` takes the place of ``attend`` where it has a kernel for these tokens.
        """
        qkv, size = self.qkv(x_BND), self.sequence.size
        weights = (None, None) if self.qk_norm == "none" else (self.norm_q.weight, self.norm_k.weight)
        fused = fuses_short and size == 1 and has_short_attention(qkv, self.num_heads, kernels)
        operation = short_attention if fused else attention_inputs
        out = operation(qkv, *weights, *angles, num_heads=self.num_heads, norm=self.qk_norm, backend=kernels)
        if isinstance(out, Tensor):
            return self.project(out)
        q, k, v = out
        if size > 1:
            q, k, v = self.sequence.to_heads(torch.stack((q, k, v)))
        y_BHNE = self.sequence.to_tokens(attend(q, k, v))
        return self.project(rearrange(y_BHNE, "b h n e -> b n (h e)"))


def share_tokens(network: nn.Module, sequence: SequenceGroup) -> None:
    """From now on the attention over frames in ``network`` is given this rank's share of the tokens."""
    for module in network.modules():
        if isinstance(module, Attention) and module.spans_frames:
            module.sequence = sequence
