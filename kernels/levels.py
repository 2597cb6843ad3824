"""``Levels``: one timestep of a diffusion process as the six numbers per sample that the forward process needs."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from dydiff_kernels.checks import Range, check_per_sample
from dydiff_kernels.dtypes import square_roots

_RANGES: tuple[Range, ...] = ("[0, inf)", "[0, inf)", "(0, 1]", "(0, 1]", "(-inf, inf)", "(-inf, inf)")


class Levels(NamedTuple):
    """z = a A x + s B ε and target = p B ε + q A x, with A and B the Dynamics operators of two levels γ̄.

    Every tensor is (B,), one number per sample, float64 (float32 is accepted), on any device. Standard diffusion has
    γ̄ = 1 (A = B = 1), a = √ᾱ and s = √(1-ᾱ); the target is the noise for p, q = 1, 0, v for a, -s, and A x for 0, 1.
    """

    signal: Tensor
    """a ≥ 0, the factor of the frames."""
    noise: Tensor
    """s ≥ 0, the factor of the noise."""
    frame_gamma: Tensor
    """γ̄ of A, the operator on frames, in (0, 1]."""
    noise_gamma: Tensor
    """γ̄ of B, the operator on noise, in (0, 1]."""
    target_noise: Tensor
    """p, the target's factor of the noise, finite."""
    target_signal: Tensor
    """q, the target's factor of the frames, finite."""

    def checked(self, op: str, batch: int) -> "Levels":
        """The same in float64.

        Raises:
            ValueError: another length than ``batch``, or a value out of its range.
        """
        named = zip(self._fields, self, _RANGES, strict=True)
        return Levels(*(check_per_sample(op, f"levels.{name}", value, batch, within) for name, value, within in named))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Levels":
        """The same with every tensor changed alike, as by taking rows."""
        return Levels(*map(change, self))

    def columns(self) -> list[Tensor]:
        """Columns of the kernels' table, (B,) float64: a, s, p, q, then √γ̄ and √(1-γ̄) of A and of B."""
        a, s, frame_gamma, noise_gamma, p, q = self
        of_frames = square_roots(frame_gamma)
        of_noise = of_frames if noise_gamma is frame_gamma else square_roots(noise_gamma)
        return [a, s, p, q, *of_frames, *of_noise]
