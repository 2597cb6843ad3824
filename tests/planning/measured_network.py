"""The XL video transformer as it was when it was measured on an H100 (commit 6b69872), in torch's own operations only.

What the planner counts is held against that measurement; the network of today has other kernels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, DEPTH, HEADS, FRAMES, TOKENS = 1152, 28, 16, 12, 256


def normalised_and_rotated(x: Tensor, weight: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Layer norm over the channels of a head, then rotary positions in float32."""
    y = F.layer_norm(x, x.shape[-1:], weight, eps=1e-6).float()
    return torch.addcmul(y * angles[0], y.roll(y.shape[-1] // 2, dims=-1), angles[1]).to(x.dtype)


class MeasuredAttention(nn.Module):
    """Over tokens (B, N, D)."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.norm_q, self.norm_k = (nn.Parameter(torch.empty(WIDTH // HEADS)) for _ in range(2))
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        B, N, D = x.shape
        angles = torch.empty(N, D // HEADS), torch.empty(N, D // HEADS)
        q, k, v = self.qkv(x).view(B, N, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        q, k = (normalised_and_rotated(t, w, angles) for t, w in ((q, self.norm_q), (k, self.norm_k)))
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D))


class MeasuredBlock(nn.Module):
    """Attention over space, over time, and the MLP, each in an adaLN-Zero branch."""

    def __init__(self):
        super().__init__()
        mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.layers = nn.ModuleList((MeasuredAttention(), MeasuredAttention(), mlp))
        self.modulations = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(3))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, S, N, D) -> (B, S, N, D)."""
        B, S, N, D = x.shape
        for index, (layer, modulation) in enumerate(zip(self.layers, self.modulations, strict=True)):
            shift, scale, gate = modulation(condition).chunk(3, dim=-1)
            y = torch.addcmul(shift, F.layer_norm(x, (D,), eps=1e-6), 1 + scale)
            if index == 0:
                y = layer(y.reshape(B * S, N, D)).view(B, S, N, D)
            elif index == 1:
                y = layer(y.transpose(1, 2).reshape(B * N, S, D)).view(B, N, S, D).transpose(1, 2)
            else:
                y = layer(y)
            x = torch.addcmul(x, gate, y)
        return x


class MeasuredNetwork(nn.Module):
    """The blocks; what stands before and after them takes less than 1 ms."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(MeasuredBlock() for _ in range(DEPTH))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, S, N, D) -> (B, S, N, D)."""
        for block in self.blocks:
            x = block(x, condition)
        return x
