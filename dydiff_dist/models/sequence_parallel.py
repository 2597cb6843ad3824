"""Sequence parallelism: the frames of one sample shared between the ranks of a group.

Every rank of a group is given the same samples. It keeps S / P of the S frames (P ranks, in rank order) through all
layers that work within a frame or a token. Attention over frames needs all of them: there an all-to-all exchanges
frames for heads, so that each rank attends over all frames with H / P of its H heads, and a second one exchanges back
(Jacobs et al. 2023, "DeepSpeed Ulysses", section 3). At the end the frames are gathered, and every rank goes on with
the whole prediction.

The one communication is `exchange`, a transposition between ranks and pieces. It is its own adjoint, so all gradients
follow from it. Every rank's loss counts: with the same loss on all P ranks of a group, parameter gradients averaged
over the group are exactly those of the whole sequence on one rank.

Letters: P ranks of the group, B batch, S frames, H heads, N tokens, E channels per head.
"""

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pieces: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(pieces, group)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(gradient, ctx.group), None


def _all_to_all(pieces: Tensor, group: dist.ProcessGroup) -> Tensor:
    received = torch.empty(pieces.shape, dtype=pieces.dtype, device=pieces.device)
    dist.all_to_all_single(received, pieces.contiguous(), group=group)
    return received


def exchange(pieces: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Piece p of rank q goes to rank p, where it becomes piece q; (P, ...) -> (P, ...), differentiable."""
    return _Exchange.apply(pieces, group)


class SequenceGroup:
    """The ranks that share a sample's frames; without a group this rank has all of them and nothing is communicated."""

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        # A compiled block is cut here; collectives run outside of its kernels in any case. Not a decorator: that would
        # import torch's compiler, more than a second, into every process that loads a model.
        self._exchange = exchange if group is None else torch.compiler.disable(exchange)

    @property
    def size(self) -> int:
        """P, ranks that share a sample."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This rank's place in the group, which is the place of its frames."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def local(self, x: Tensor, dim: int) -> Tensor:
        """This rank's frames of the frame axis ``dim``."""
        return x if self.group is None else x.chunk(self.size, dim)[self.rank]

    def gather(self, x_BS: Tensor) -> Tensor:
        """All frames from every rank's share; (B, S / P, ...) -> (B, S, ...)."""
        if self.group is None:
            return x_BS
        copies = x_BS.expand(self.size, *x_BS.shape)
        return rearrange(self._exchange(copies, self.group), "p b s ... -> b (p s) ...")

    def to_heads(self, x: Tensor) -> Tensor:
        """All tokens of this rank's share of the heads; (..., H, N / P, E) -> (..., H / P, N, E)."""
        if self.group is None:
            return x
        pieces = self._exchange(rearrange(x, "... (p h) n e -> p ... h n e", p=self.size), self.group)
        return rearrange(pieces, "p ... h n e -> ... h (p n) e")

    def to_tokens(self, x: Tensor) -> Tensor:
        """The inverse of `to_heads`; (..., H / P, N, E) -> (..., H, N / P, E)."""
        if self.group is None:
            return x
        pieces = self._exchange(rearrange(x, "... h (p n) e -> p ... h n e", p=self.size), self.group)
        return rearrange(pieces, "p ... h n e -> ... (p h) n e")


def check_sequence_parallel(size: int, *, num_frames: int, num_heads: int) -> None:
    """Refuses a number of ranks per sample that does not divide what it shares.

    Raises:
        ValueError: frames or heads are not a multiple of ``size``. Checked before anything runs: a rank that fails
            alone in the middle leaves the others waiting.
    """
    for what, number, key in (
        ("frames", num_frames, "data.num_history_frames or data.num_future_frames"),
        ("attention heads", num_heads, "model.num_heads"),
    ):
        if number % size:
            raise ValueError(
                f"execution.sequence_parallel_size {size} does not divide the {number} {what}; change it or {key}"
            )
