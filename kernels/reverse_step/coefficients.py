"""Per-sample numbers of one reverse step, the common form of every sampler."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dydiff_kernels.checks import Range, check_per_sample
from dydiff_kernels.dtypes import square_roots

_RANGES: dict[str, Range] = {
    "frame_gamma": "(0, 1]",
    "noise_gamma": "(0, 1]",
    "next_frame_gamma": "[0, 1]",
    "next_noise_gamma": "[0, 1]",
    "sigma": "[0, inf)",
}


@dataclass(frozen=True, kw_only=True)
class StepCoefficients:
    """What a sampler hands to ``reverse_step``; every tensor is (B,) float64 (or float32), on any one device.

    The step goes from timestep t to t'. A and B are the Dynamics operators on frames and on noise at t, A' and B' those
    at t'; the forward process is z = a A x + s B ε, and w ~ N(0, I) is fresh noise:

        x̂  = A⁻¹( from_z z + from_output out ),  or from_z A⁻¹z + from_output out for outputs before mixing
        z' = A'( b x̂ + c x̂_prev ) + B'( k B⁻¹( z - a A x̂ ) + σ w )

    B⁻¹(z - a A x̂) is s times the noise that fits z and x̂, clamped history included. Where the operators on noise are
    those on the frames, z' = A'( k A⁻¹z + (b - k a) x̂ + c x̂_prev + σ w ), which the kernels calculate at once.

    DDIM (Song et al. 2021) has k = √(s'² - σ²)/s, b = a', c = 0. DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) with
    A₁ = a'(1 - e⁻ʰ) and r = h_prev/h has k = s'/s, b = k a + A₁(1 + 1/(2r)), c = -A₁/(2r).

    Args:
        frame_gamma, next_frame_gamma: γ̄ of A in (0, 1], of A' in [0, 1].
        noise_gamma, next_noise_gamma: the same of B and B'. None, both: B is A and B' is A'.
        from_z, from_output: factors of z and of the network's output in x̂.
        signal: a, the factor of the frames at t.
        clean, previous, kept_noise: b, c (default 0) and k.
        sigma: σ ≥ 0, default 0.
    """

    frame_gamma: Tensor
    next_frame_gamma: Tensor
    noise_gamma: Tensor | None = None
    next_noise_gamma: Tensor | None = None
    from_z: Tensor
    from_output: Tensor
    signal: Tensor
    clean: Tensor
    previous: Tensor | None = None
    kept_noise: Tensor
    sigma: Tensor | None = None

    def checked(self, op: str, batch: int) -> "StepCoefficients":
        """The same in float64, with zeros for ``previous`` and ``sigma`` where they are None.

        Raises:
            ValueError: another length than ``batch``, a value out of range, or one noise operator without the other.
        """
        if (self.noise_gamma is None) != (self.next_noise_gamma is None):
            raise ValueError(f"{op}: one of step.noise_gamma and step.next_noise_gamma is None; give both or none")
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("previous", "sigma"):
            if values[name] is None:
                values[name] = torch.zeros_like(self.signal)
        return StepCoefficients(
            **{
                name: check_per_sample(op, f"step.{name}", value, batch, _RANGES.get(name, "(-inf, inf)"))
                for name, value in values.items()
                if value is not None
            }
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> "StepCoefficients":
        """The same with every tensor changed alike, as by taking rows."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: change(v) for name, v in values.items() if v is not None})

    def factors(self) -> tuple[Tensor, ...]:
        """from_z, from_output, a, b, c, k, σ of a checked one."""
        assert self.previous is not None and self.sigma is not None
        estimate = (self.from_z, self.from_output, self.signal)
        return *estimate, self.clean, self.previous, self.kept_noise, self.sigma

    def noise_operators(self) -> tuple[Tensor, Tensor]:
        """γ̄ of the operators on noise at t and t'."""
        if self.noise_gamma is None or self.next_noise_gamma is None:
            return self.frame_gamma, self.next_frame_gamma
        return self.noise_gamma, self.next_noise_gamma

    @property
    def shares_operators(self) -> bool:
        """Whether the operators on noise are those on the frames."""
        return self.noise_gamma is None

    def columns(self) -> list[Tensor]:
        """The kernels' table: from_z, from_output, a, b, c, k, σ, then √γ̄ and √(1-γ̄) of A, A', B and B'.

        Where A is B, b - k a stands for b: the difference is taken in float64.
        """
        from_z, from_output, a, b, c, k, sigma = self.factors()
        b = b - k * a if self.shares_operators else b
        of_frames = [*square_roots(self.frame_gamma), *square_roots(self.next_frame_gamma)]
        of_noise = of_frames if self.shares_operators else [r for g in self.noise_operators() for r in square_roots(g)]
        return [from_z, from_output, a, b, c, k, sigma, *of_frames, *of_noise]
