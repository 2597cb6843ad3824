"""What a network's step launches on a GPU, kernel by kernel, found by running it without content.

The real network runs forward and backward on tensors that have shapes and no content (torch's FakeTensorMode), and
every operation that moves memory is written down with its bytes, its arithmetic and what kind of kernel torch runs for
it. So every option of a model is counted as it is, not by formulas that could fall behind it. What a launch takes on a
GPU says ``kernel_time.py``.
"""

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from dydiff_dist.models import ExecutionConfig, InputSizes
from dydiff_dist.tasks.config import RunConfig
from dydiff_kernels.registry import as_on_gpu

Kind = Literal["products", "attention", "norms", "elementwise", "copies", "reductions", "fused"]

ATTENTION_TILE = 128
"""Tokens of queries and of keys that one program of a fused attention kernel works on: shorter sequences fill it up."""
HEAD_MULTIPLE = 64
"""Channels of a head are filled up to a multiple of it."""
_COPIES = ("to_copy", "clone", "copy_", "cat", "stack", "contiguous")
_REDUCTIONS = ("sum", "mean", "amax", "var_mean")
_NORMS = ("layer_norm", "group_norm", "rms_norm", "softmax")
_ALWAYS_STRIDED = ("roll", "cat", "stack", "index", "constant_pad", "upsample", "pool")
"""Kernels that work out an address for every element, whatever the layout."""


@dataclass(frozen=True)
class Launch:
    """One kernel, or a few that torch runs for one operation."""

    op: str
    """The operation's name in torch, without namespace and overload."""
    kind: Kind
    reads: dict[int, int]
    """Bytes by the number of the storage that they lie in."""
    writes: dict[int, int]
    elements: int = 0
    """Of the largest tensor, where the kernel works out an address for each (other strides, broadcasting, another
    type); 0 where all lie alike and it reads straight on."""
    rows: int = 0
    """Rows of a norm, each of which has a thread block to itself."""
    flops: int = 0
    """Operations of matrix products, with the tiles that attention fills up."""
    is_column_sum: bool = False
    """Whether it adds up over tokens, so that a compiler can't do it in the pass that works row by row."""

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(self.reads.values()) + sum(self.writes.values())


@dataclass(frozen=True)
class NetworkTrace:
    """Forward and backward pass of one micro-batch."""

    launches: list[Launch]
    num_forward: int
    """How many of the launches, the first ones, are the forward pass's."""
    peak_bytes: int
    """Most that is held at once beside weights and their gradients."""


def trace_network(config: RunConfig, sizes: InputSizes, batch: int = 1) -> NetworkTrace:
    """Traces the network of a run; ranks that share a sample's frames do an equal part of it each.

    Args:
        config: the run; the network, its precision and how it is executed count.
        sizes: of a sample as the network sees it.
        batch: samples of the micro-batch.
    """
    asked = config.execution.attention_backend
    # every attention backend but the written-out one keeps and moves what torch's flash attention does
    counted_as = {"auto": "auto", "reference": "reference", "sdpa_math": "reference"}
    execution = ExecutionConfig.model_validate(
        {
            "attention_backend": counted_as.get(asked, "sdpa"),
            "checkpoint_fraction": config.execution.checkpoint_fraction,
        }
    )
    dtype = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
    with FakeTensorMode(), as_on_gpu():
        network = config.model.build(sizes, execution, kernels=config.kernels.backend).requires_grad_(False)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_().register_post_accumulate_grad_hook(_drop_gradient)
        z, timesteps, history, actions = (_repeated(tensor, batch) for tensor in sizes.example(dtype))
        inputs = [tensor for tensor in (z, timesteps, history) if tensor is not None]
        with LaunchCounter([*network.parameters(), *inputs]) as count:
            loss = network(z, timesteps, history=history, actions=actions).float().square().mean()
            num_forward = len(count.launches)
            loss.backward()
    return NetworkTrace(count.launches, num_forward, count.peak)


def _repeated(tensor: Tensor | None, batch: int) -> Tensor | None:
    return None if tensor is None else tensor.new_empty(batch, *tensor.shape[1:])


def _drop_gradient(parameter: Tensor) -> None:
    """Gradients are counted apart, where it is known how they are sharded."""
    parameter.grad = None


class LaunchCounter(TorchDispatchMode):
    """Writes down what is launched, and the bytes of all storages that are alive but for those that were there before.

    Args:
        existing: tensors whose storages were there before.
    """

    def __init__(self, existing: list[Tensor]):
        super().__init__()
        self.launches: list[Launch] = []
        self.live = self.peak = 0
        self._numbers: dict[int, int] = {}
        self._next = 0
        for tensor in existing:
            self._number(tensor, counted=False)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [tensor for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)]
        known = {tensor.untyped_storage()._cdata for tensor in given}
        out = function(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_iter(out) if isinstance(tensor, Tensor)]
        is_view = all(tensor.untyped_storage()._cdata in known for tensor in made)
        if function._schema.is_mutable or not is_view:  # views and aliases move nothing
            name = function.name().partition("::")[2].partition(".")[0].replace("_for_cpu", "").strip("_")
            self.launches += self._kernels_of(name, function, given, made, args, kwargs or {}, out)
        return out

    def _kernels_of(
        self, name: str, function: Any, given: list[Tensor], made: list[Tensor], args: Any, kwargs: Any, out: Any
    ) -> Iterator[Launch]:
        looks_at = [] if name.endswith("_like") or name.startswith("new_") else given
        reads = {self._number(tensor): _bytes(tensor) for tensor in looks_at}
        writes = {self._number(tensor): _bytes(tensor) for tensor in made}
        if function.namespace == "dydiff":
            yield Launch(name, "fused", reads, writes)
        elif "scaled_dot_product" in name:
            yield Launch(name, "attention", reads, writes, flops=_attention_flops(given, backward="backward" in name))
        elif function._overloadpacket in flop_registry:
            flops = flop_registry[function._overloadpacket](*args, **kwargs, out_val=out)
            yield Launch(name, "products", reads, writes, flops=flops)
        elif "layer_norm" in name:
            yield from self._layer_norm(name, given, made)
        elif any(part in name for part in _NORMS):
            yield Launch(name, "norms", reads, writes)
        elif name in _REDUCTIONS:
            yield Launch(name, "reductions", reads, writes, is_column_sum=_keeps_channels(given[0], made[0]))
        else:
            kind: Kind = "copies" if name in _COPIES else "elementwise"
            is_strided = name in _ALWAYS_STRIDED or not _lie_alike([*given, *made])
            elements = max((tensor.numel() for tensor in (*given, *made)), default=0) if is_strided else 0
            yield Launch(name, kind, reads, writes, elements=elements)

    def _layer_norm(self, name: str, given: list[Tensor], made: list[Tensor]) -> Iterator[Launch]:
        """Rows that don't lie one after the other are copied first, in both directions; the gradient of the weight is
        a kernel of its own."""
        whole = [tensor for tensor in given if tensor.shape == made[0].shape]
        rows = made[0].numel() // max(1, made[0].shape[-1])
        for tensor in whole:
            if not tensor.is_contiguous():
                moved = {self._number(tensor): _bytes(tensor)}
                yield Launch("clone", "copies", moved, {self._number(made[0]): _bytes(tensor)}, tensor.numel())
        reads = {self._number(tensor): _bytes(tensor) for tensor in given}
        yield Launch(name, "norms", reads, {self._number(made[0]): _bytes(made[0])}, rows=rows)
        if "backward" in name and len(made) > 1:
            grads = {self._number(tensor): _bytes(tensor) for tensor in made[1:]}
            yield Launch("layer_norm_weight", "reductions", reads, grads, is_column_sum=True)
        elif "backward" not in name:
            for tensor in made[1:]:
                self._number(tensor)  # mean and deviation of each row

    def _number(self, tensor: Tensor, counted: bool = True) -> int:
        """Of the tensor's storage, which is counted as alive from its first mention until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._numbers:
            self._numbers[key] = self._next
            self._next += 1
            size = storage.nbytes() if counted else 0
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)
        return self._numbers[key]

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        del self._numbers[key]


def _bytes(tensor: Tensor) -> int:
    """What is read of a tensor: one that is expanded is read once."""
    elements = math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size <= 1
    )
    return elements * tensor.element_size()


def _lie_alike(tensors: list[Tensor]) -> bool:
    """Whether shapes, strides and types are the same, but for numbers: then a kernel reads them straight on."""
    layouts = {
        (tensor.dtype, *((n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1))
        for tensor in tensors
        if tensor.numel() > 1
    }
    return len(layouts) <= 1


def _keeps_channels(before: Tensor, after: Tensor) -> bool:
    """Whether a sum leaves the last axis, the channels, as it is."""
    return after.ndim > 0 and before.ndim > 0 and after.shape[-1] == before.shape[-1] > 1


def _attention_flops(given: list[Tensor], backward: bool) -> int:
    """Two products forward and five backward, over whole tiles."""
    whole = [tensor for tensor in given if tensor.ndim == 4]
    query, key = whole[1:3] if backward else whole[:2]
    B, H, N, E = query.shape
    queries, keys = (-(-n // ATTENTION_TILE) * ATTENTION_TILE for n in (N, key.shape[2]))
    channels = -(-E // HEAD_MULTIPLE) * HEAD_MULTIPLE
    return (5 if backward else 2) * 2 * B * H * queries * keys * channels
