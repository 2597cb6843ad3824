"""What a denoising network is to everything that uses one: a call, and a configuration that builds and measures it.

A network of one's own is a module that is called like `Denoiser`, a `DenoiserConfig` beside it, and one call of
`register_network`; ``model.network`` of a run configuration then names it.

Letters: B batch, S frames, S_h history frames, C channels, H W height and width, A action channels.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dydiff_dist.strict_config import StrictConfig
from dydiff_kernels import Backend

DEFAULT_NETWORK = "video_transformer"
"""What ``model`` means without the key ``network``."""


class Denoiser(Protocol):
    """A network as training, sampling and validation call it."""

    def __call__(self, z: Tensor, timesteps: Tensor, *, history: Tensor, actions: Tensor | None = None) -> Tensor:
        """One prediction for every frame.

        Args:
            z: noisy frames (B, S, C, H, W), history frames included.
            timesteps: (B,) int64 diffusion timesteps, 0..N-1.
            history: clean first frames, (B, S_h, C, H, W).
            actions: (B, S, A), given exactly where the network was built with action channels.

        Returns:
            (B, S, C, H, W), what the process predicts.
        """


@runtime_checkable
class SharesFrames(Protocol):
    """A network whose frames ranks can share (``execution.sequence_parallel_size``)."""

    def share_frames(self, group: dist.ProcessGroup) -> None:
        """From now on this rank computes its share of the frames, with the other ranks of ``group``.

        All of them must be given the same samples; each is returned the whole prediction. Parameter gradients are to be
        averaged over the group (`dydiff_dist.models.sequence_parallel`).
        """


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """One sample as a network sees it: frames in network units or latents."""

    num_frames: int
    """S, history and future together."""
    num_history_frames: int
    num_channels: int
    height: int
    width: int
    num_action_channels: int = 0
    """A; 0 where the data have no actions."""

    @property
    def num_elements(self) -> int:
        """S C H W."""
        return self.num_frames * self.num_channels * self.height * self.width

    def example(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(z, timesteps, history, actions) of one sample on torch's default device, as a `Denoiser` takes them; their
        values are not set."""
        frames = (1, self.num_frames, self.num_channels, self.height, self.width)
        z, timesteps = torch.empty(frames, dtype=dtype), torch.zeros(1, dtype=torch.int64)
        actions = torch.empty(1, self.num_frames, self.num_action_channels) if self.num_action_channels else None
        return z, timesteps, torch.empty(1, self.num_history_frames, *frames[2:], dtype=dtype), actions


class ExecutionConfig(StrictConfig):
    """How a network runs, without changing what it computes or stores: a resumed run may change all of it."""

    attention_backend: Literal[
        "auto", "sdpa", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "sdpa_math", "xformers", "reference"
    ] = "auto"
    """auto: on a GPU a kernel of ours over at most 32 tokens, for more xformers where it runs; torch's SDPA elsewhere.
    What was chosen is logged. sdpa leaves the kernel to torch, sdpa_… names it."""
    checkpoint_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the blocks whose activations are dropped in the forward pass and recomputed in the backward pass: less
    memory, up to a third more operations, the same gradients."""
    compile_blocks: bool = False
    """Whether torch.compile compiles the blocks: a start of minutes, faster steps."""
    sequence_parallel_size: PositiveInt = 1
    """Ranks that share the frames of each sample, for long video; divides ranks, frames and attention heads. The other
    ranks / this size share the global batch."""


class DenoiserConfig(StrictConfig):
    """What a network computes, the section ``model`` of a run; stored with the weights.

    A subclass gives ``network`` its own name as default, and `build` and `describe`. All else has defaults that hold
    for any network, found on the meta device, where tensors have shapes and no content.
    """

    network: str = DEFAULT_NETWORK
    """Which network; what other keys there are depends on it (docs/model.md)."""

    @model_serializer(mode="wrap")
    def _named(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The network's name stays where defaults are left out: it says whose they are."""
        named = {} if self.network == DEFAULT_NETWORK else {"network": self.network}
        return named | handler(self)

    @abstractmethod
    def build(
        self, sizes: InputSizes, execution: ExecutionConfig | None = None, kernels: Backend = "auto"
    ) -> nn.Module:
        """A new network, a `Denoiser`, on torch's default device with weights from torch's global generator.

        Args:
            sizes: what it will be given; a network may take other lengths and sizes as well.
            execution: how it runs; None is the default.
            kernels: backend of fused operations in the network, where it has any.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line for people: the numbers that make the network's size."""

    def check(self, sizes: InputSizes, execution: ExecutionConfig, device_type: str, dtype: torch.dtype) -> None:
        """Refuses what the network can't do, before anything is built.

        Args:
            sizes: what it will be given.
            execution: how it is to run.
            device_type: ``cpu`` or ``cuda``.
            dtype: of weights and activations.

        Raises:
            ValueError: one line with the key to change.
        """
        if execution.sequence_parallel_size > 1:
            raise ValueError(
                f"execution.sequence_parallel_size is {execution.sequence_parallel_size}, but network {self.network!r} "
                "can't share frames between ranks; set it to 1"
            )

    @property
    def patch_edge(self) -> int:
        """Pixels along the edge of the square patches that the network cuts its frames into; 1 where it cuts none."""
        return 1

    @property
    def num_blocks(self) -> int:
        """Parts that ZeRO stage 3 gathers one after the other."""
        return 1

    def num_tokens(self, sizes: InputSizes) -> int:
        """Positions of one sample that the network computes on, for tokens per second."""
        return sizes.num_frames * sizes.height * sizes.width

    def parameter_sizes(self, sizes: InputSizes) -> list[int]:
        """Elements of each of the network's parameters."""
        with torch.device("meta"):
            return [parameter.numel() for parameter in self.build(sizes).parameters()]

    def parameter_count(self, sizes: InputSizes) -> int:
        """Number of the network's parameters; only the channels of ``sizes`` matter."""
        return sum(self.parameter_sizes(sizes))

    def flops_by_part(self, sizes: InputSizes) -> dict[str, int]:
        """Floating-point operations of one sample's forward pass, by part of the network.

        A multiplication and an addition count as two operations. Matrix products and convolutions alone are counted;
        norms, activations and biases are left out (below 1 % at the widths of use).
        """
        return {"network": self._counted_flops(sizes, 0.0, backward=False)}

    def forward_flops(self, sizes: InputSizes) -> int:
        """Operations of one sample's forward pass; what counts says `flops_by_part`."""
        return sum(self.flops_by_part(sizes).values())

    def recomputed_flops(self, sizes: InputSizes, checkpoint_fraction: float) -> int:
        """Operations that ``execution.checkpoint_fraction`` adds to one sample's backward pass."""
        if checkpoint_fraction == 0:
            return 0
        with_and_without = [self._counted_flops(sizes, part, backward=True) for part in (checkpoint_fraction, 0.0)]
        return with_and_without[0] - with_and_without[1]

    def training_flops(self, sizes: InputSizes, checkpoint_fraction: float = 0.0) -> int:
        """Operations of one sample's forward and backward pass: three forward passes, and what is recomputed.

        Model FLOPs utilisation counts with ``checkpoint_fraction`` 0 (Chowdhery et al. 2022, appendix B): what is
        recomputed is no progress. Hardware utilisation counts with the run's fraction.
        """
        return 3 * self.forward_flops(sizes) + self.recomputed_flops(sizes, checkpoint_fraction)

    def _counted_flops(self, sizes: InputSizes, checkpoint_fraction: float, backward: bool) -> int:
        # the written-out attention is what torch's counter sees on any device
        execution = ExecutionConfig(attention_backend="reference", checkpoint_fraction=checkpoint_fraction)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            z, timesteps, history, actions = sizes.example()
            out = self.build(sizes, execution, "reference")(z, timesteps, history=history, actions=actions)
            if backward:
                out.sum().backward()
        return counter.get_total_flops()

    @classmethod
    def variant(cls, tree: Mapping[str, Any]) -> type["DenoiserConfig"]:
        """The registered class that ``tree`` is for, by its key ``network``.

        Raises:
            ValueError: no such network.
        """
        name = tree.get("network", DEFAULT_NETWORK)
        if not isinstance(name, str) or name not in _NETWORKS:
            nearest = get_close_matches(str(name), _NETWORKS, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ValueError(f"unknown network {name!r}; {hint}registered are {', '.join(sorted(_NETWORKS))}")
        return _NETWORKS[name]


_NETWORKS: dict[str, type[DenoiserConfig]] = {}


def register_network(name: str, config_type: type[DenoiserConfig]) -> None:
    """From now on ``"model": {"network": name, …}`` is a ``config_type``, in run configurations and exported models.

    Args:
        name: the default of ``config_type``'s field ``network``, so that a stored configuration finds its class.
        config_type: describes and builds the network.

    Raises:
        ValueError: the field says something else, or another class has the name.

    Examples:
        >>> class SameConfig(DenoiserConfig):
        ...     network: str = "same"
        ...     def build(self, sizes, execution=None, kernels="auto"):
        ...         return nn.Identity()
        ...     def describe(self):
        ...         return "gives back what it is given"
        >>> register_network("same", SameConfig)
        >>> DenoiserConfig.variant({"network": "same"}).__name__
        'SameConfig'
    """
    default = config_type.model_fields["network"].default
    if default != name:
        raise ValueError(f"{config_type.__name__}.network is {default!r} by default; make it {name!r}")
    if _NETWORKS.setdefault(name, config_type) is not config_type:
        raise ValueError(f"network {name!r} is {_NETWORKS[name].__name__} already; choose another name")


def _validated(section: Any) -> Any:
    """The section ``model`` as the class that its key ``network`` names; its errors keep naming their keys."""
    if not isinstance(section, Mapping):
        return section
    # as JSON, in which a list stands for a tuple also where types are strict
    return DenoiserConfig.variant(section).model_validate_json(json.dumps(section))


AnyDenoiserConfig = Annotated[SerializeAsAny[DenoiserConfig], BeforeValidator(_validated)]
"""Type of a configuration field that holds any registered network's configuration."""
