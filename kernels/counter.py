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
    SAMPLER_SHIFT = 10


@dataclass(frozen=True)
class NoiseCounter:
    """The name of noise for a batch: which run, which samples, which step, what for.

    Seed and step are numbers, or both lie in memory beside ``sample_index``, where kernels read them when they run: a
    recording (CUDA graph) draws, each time that it is played, the noise that they name then. The host looks at none.

    Args:
        seed: the run's seed, 0 ≤ seed < 2⁶⁴ (the Philox key); in memory its bits, () int64.
        sample_index: (B,) int64, global sample indices, 0 ≤ index < 2⁵⁶ (checked on the CPU only, beside numbers).
        step: training or sampler step, 0 ≤ step < 2³²; in memory () int64.
        stream: purpose, a ``Stream`` or any 0 ≤ stream < 2⁸.

    Raises:
        ValueError: a value out of its range, or a tensor of another shape, dtype or device.

    Examples:
        >>> numbers = NoiseCounter(seed=7, sample_index=torch.tensor([3, 5]), step=2)
        >>> seed, step = numbers.words()
        >>> in_memory = NoiseCounter(seed, numbers.sample_index, step)  # names the same noise
    """

    seed: int | torch.Tensor
    sample_index: torch.Tensor
    step: int | torch.Tensor
    stream: Stream | int = Stream.DIFFUSION

    def __post_init__(self):
        index = self.sample_index
        if not isinstance(index, torch.Tensor) or index.dtype != torch.int64 or index.ndim != 1:
            raise ValueError(
                f"NoiseCounter: sample_index is {_found(index)}; expected a torch.int64 tensor of shape (B,)"
            )
        _check_number("stream", self.stream, 8)
        if isinstance(self.seed, torch.Tensor) or isinstance(self.step, torch.Tensor):
            _check_word("seed", self.seed, index.device)
            _check_word("step", self.step, index.device)
            return
        _check_number("seed", self.seed, 64)
        _check_number("step", self.step, 32)
        if index.device.type == "cpu" and index.numel() and not (index.min() >= 0 and index.max() < 2**56):
            worst = index.min().item() if index.min() < 0 else index.max().item()
            raise ValueError(f"NoiseCounter: sample_index holds {worst}; expected 0 <= index < 2**56")

    def to(self, device: torch.device | str) -> "NoiseCounter":
        """The same noise with its tensors on ``device``, contiguous."""
        seed, step = (word.to(device) if isinstance(word, torch.Tensor) else word for word in (self.seed, self.step))
        return NoiseCounter(seed, self.sample_index.to(device).contiguous(), step, self.stream)

    def words(self) -> torch.Tensor:
        """Seed and step as they lie in memory, (2,) int64 beside ``sample_index``."""
        if isinstance(self.seed, torch.Tensor) and isinstance(self.step, torch.Tensor):
            return torch.stack((self.seed, self.step))
        seed = int(self.seed)
        return torch.tensor([seed - 2**64 if seed >= 2**63 else seed, int(self.step)], device=self.sample_index.device)


def _check_number(name: str, value: object, bits: int) -> None:
    if not isinstance(value, int) or not 0 <= value < 2**bits:
        raise ValueError(f"NoiseCounter: {name} is {value!r}; expected an integer with 0 <= {name} < 2**{bits}")


def _check_word(name: str, value: object, device: torch.device) -> None:
    if not isinstance(value, torch.Tensor) or (value.dtype, value.ndim, value.device) != (torch.int64, 0, device):
        raise ValueError(
            f"NoiseCounter: {name} is {_found(value)}; expected torch.int64 () on {device}, as the other, or numbers"
        )


def _found(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} on {value.device}"
    return type(value).__name__


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
