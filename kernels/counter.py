"""``NoiseCounter``, the name of noise: who draws, for which samples, at which step, what for."""

import enum
from dataclasses import dataclass

import torch

MAX_ELEMENTS = 2**34
"""Elements per sample that a 32-bit counter word can number, four to a counter."""


class Stream(enum.IntEnum):
    """What a sample's random numbers are for. Streams of one sample and step are independent of each other."""

    DIFFUSION = 0
    TIMESTEP = 1
    CONDITIONING_DROPOUT = 2
    LATENT_POSTERIOR = 3
    SAMPLER_START = 4
    SAMPLER_ETA = 5
    AUGMENTATION = 6
    DATA_ORDER = 7
    ROLLOUT = 8
    HISTORY_NOISE = 9
    SAMPLER_SHIFT = 10


@dataclass(frozen=True)
class NoiseCounter:
    """The name of noise for a batch: which run, which samples, which step, what for.

    Args:
        seed: the run's seed, 0 ≤ seed < 2⁶⁴ (the Philox key).
        sample_index: (B,) int64, global sample indices, 0 ≤ index < 2⁵⁶ (checked on the CPU only).
        step: training or sampler step, 0 ≤ step < 2³².
        stream: purpose, a ``Stream`` or any 0 ≤ stream < 2⁸.

    Raises:
        ValueError: a value out of its range, or ``sample_index`` of another shape or dtype.
    """

    seed: int
    sample_index: torch.Tensor
    step: int
    stream: Stream | int = Stream.DIFFUSION

    def __post_init__(self):
        for name, value, bits in (("seed", self.seed, 64), ("step", self.step, 32), ("stream", self.stream, 8)):
            if not isinstance(value, int) or not 0 <= value < 2**bits:
                raise ValueError(f"NoiseCounter: {name} is {value!r}; expected an integer with 0 <= {name} < 2**{bits}")
        index = self.sample_index
        if not isinstance(index, torch.Tensor) or index.dtype != torch.int64 or index.ndim != 1:
            found = f"{index.dtype} {tuple(index.shape)}" if isinstance(index, torch.Tensor) else type(index).__name__
            raise ValueError(f"NoiseCounter: sample_index is {found}; expected a torch.int64 tensor of shape (B,)")
        if index.device.type == "cpu" and index.numel() and not (index.min() >= 0 and index.max() < 2**56):
            worst = index.min().item() if index.min() < 0 else index.max().item()
            raise ValueError(f"NoiseCounter: sample_index holds {worst}; expected 0 <= index < 2**56")

    def to(self, device: torch.device | str) -> "NoiseCounter":
        """The same noise with ``sample_index`` on ``device``, contiguous."""
        return NoiseCounter(self.seed, self.sample_index.to(device).contiguous(), self.step, self.stream)


def check_counter(op: str, counter: NoiseCounter, shape: torch.Size | tuple[int, ...]) -> None:
    """``counter`` names noise for a tensor of ``shape`` (B, *sample_shape)."""
    if len(shape) < 1 or shape[0] != counter.sample_index.numel():
        raise ValueError(
            f"{op}: the noise counter names {counter.sample_index.numel()} samples; expected a shape (B, ...) with "
            f"that B, got {tuple(shape)}"
        )
    num_elements = torch.Size(shape[1:]).numel()
    if num_elements > MAX_ELEMENTS:
        raise ValueError(f"{op}: a sample of {num_elements} elements has no counter; expected at most 2**34")
