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

from dydiff_dist.models import ExecutionConfig, InputSizes
from dydiff_dist.tasks.config import RunConfig

_MATRIX_OPS = ("mm", "addmm", "bmm", "baddbmm", "scaled_dot_product", "convolution")
"""Operations that matrix units carry out; they are counted in operations (`DenoiserConfig`), not in traffic."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Of one sample on one rank."""

    peak_bytes: float
    """Most that is held at once beside weights and their gradients."""
    traffic_bytes: float
    """What operations other than matrix products read and write, forward and backward together, each by itself."""


def simulate_activations(config: RunConfig, sizes: InputSizes) -> Activations:
    """One sample of ``config``; ranks that share a sample's frames hold equal parts of it.

    Args:
        config: the run; the network, its precision and how it is executed count.
        sizes: of a sample as the network sees it.
    """
    # every attention backend but the written-out one keeps what torch's flash attention keeps
    written_out = config.execution.attention_backend in ("reference", "sdpa_math")
    execution = ExecutionConfig(
        attention_backend="reference" if written_out else "sdpa",
        checkpoint_fraction=config.execution.checkpoint_fraction,
    )
    dtype = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
    with FakeTensorMode():
        # on GPUs torch's own operations run inside the network; ours on CPUs keep less
        network = config.model.build(sizes, execution, kernels="reference").requires_grad_(False)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_().register_post_accumulate_grad_hook(_drop_gradient)
        z, timesteps, history, actions = sizes.example(dtype)
        with _StorageCount([*network.parameters(), z, history, timesteps]) as count:
            network(z, timesteps, history=history, actions=actions).float().square().mean().backward()
    share = config.ranks_per_sample
    return Activations(peak_bytes=count.peak / share, traffic_bytes=count.traffic / share)


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
