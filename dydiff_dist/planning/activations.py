"""What one sample's pass through the network keeps and moves, found by running it without memory.

The real network runs forward and backward on tensors that have shapes and no content (torch's FakeTensorMode), while
each storage that an operation makes is counted until it is freed. So every option of the model is counted as it is, not
by formulas that could fall behind it. Both results are proportional to the samples of a micro-batch.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.models import ExecutionConfig, build_network
from dydiff_dist.tasks.config import RunConfig

_SAMPLED_DEPTHS = (4, 8)
"""Deeper networks follow from these two: blocks are alike, so memory and traffic grow by the same with each four."""
_MATRIX_OPS = ("mm", "addmm", "bmm", "baddbmm", "scaled_dot_product")
"""Operations that matrix units carry out; they are counted in operations (models/flops.py), not in traffic."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Of one sample on one rank."""

    peak_bytes: float
    """Most that is held at once beside weights and their gradients."""
    traffic_bytes: float
    """What operations other than matrix products read and write, forward and backward together, each by itself."""


def simulate_activations(config: RunConfig, schema: FrameSchema) -> Activations:
    """One sample of ``config`` on data of ``schema``; ranks that share a sample's frames hold equal parts of it."""
    depth = config.model.depth
    if depth <= _SAMPLED_DEPTHS[-1]:
        peak, traffic = _run(config, schema, depth)
    else:
        low, high = _SAMPLED_DEPTHS
        (peak, traffic), (peak_high, traffic_high) = _run(config, schema, low), _run(config, schema, high)
        blocks = (depth - low) / (high - low)
        peak, traffic = peak + blocks * (peak_high - peak), traffic + blocks * (traffic_high - traffic)
    return Activations(peak_bytes=peak / config.ranks_per_sample, traffic_bytes=traffic / config.ranks_per_sample)


def _run(config: RunConfig, schema: FrameSchema, depth: int) -> tuple[float, float]:
    """Peak and traffic of one sample through a network of ``depth`` blocks."""
    # every attention backend but the written-out one keeps what torch's flash attention keeps
    backend = "reference" if config.execution.attention_backend in ("reference", "sdpa_math") else "sdpa"
    execution = ExecutionConfig(attention_backend=backend, checkpoint_fraction=config.execution.checkpoint_fraction)
    dtype = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
    num_frames, num_history = config.data.num_frames, config.data.num_history_frames
    num_actions = schema.num_actions if config.data.use_actions else 0
    frame = (schema.shape[0], *(config.data.crop_size or schema.shape[1:]))
    with FakeTensorMode():
        network = build_network(
            config.model.model_copy(update={"depth": depth}),
            num_channels=schema.shape[0],
            num_action_channels=num_actions,
            execution=execution,
            kernels="reference",  # on GPUs torch's own operations run inside the network; ours on CPUs keep less
        ).requires_grad_(False)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_().register_post_accumulate_grad_hook(_drop_gradient)
        z, history = (torch.empty(1, n, *frame, dtype=dtype) for n in (num_frames, num_history))
        actions = torch.empty(1, num_frames, num_actions) if num_actions else None
        timesteps = torch.zeros(1, dtype=torch.int64)
        with _StorageCount([*network.parameters(), z, history, timesteps]) as count:
            network(z, timesteps, history=history, actions=actions).float().square().mean().backward()
    return count.peak, count.traffic


def _drop_gradient(parameter: Tensor) -> None:
    """Gradients are counted apart, where it is known how they are sharded."""
    parameter.grad = None


class _StorageCount(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, but for those that were there before."""

    def __init__(self, existing: list[Tensor]):
        super().__init__()
        self.live = self.peak = self.traffic = 0
        self._sizes: dict[int, int] = {}
        self._existing = {tensor.untyped_storage()._cdata for tensor in existing}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [tensor for tensor in tree_iter(out) if isinstance(tensor, Tensor)]
        is_new = [self._note(tensor) for tensor in tensors]
        works = any(is_new) or function._schema.is_mutable  # views and aliases move nothing
        if works and not any(name in function.name() for name in _MATRIX_OPS):
            moved = [tensor for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)]
            self.traffic += sum(_bytes(tensor) for tensor in (*moved, *tensors))
        return out

    def _note(self, tensor: Tensor) -> bool:
        """Whether the tensor's storage is a new one; counts it from now until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._existing:
            return False
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)
        return True

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
