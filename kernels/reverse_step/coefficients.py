"""Per-sample coefficients of one reverse step, the common form of every sampler."""

import dataclasses
from dataclasses import dataclass

import torch

from dydiff_kernels.checks import check_per_sample


@dataclass(frozen=True)
class StepCoefficients:
    """What a sampler hands to ``reverse_step``; every tensor is (B,) float64 (or float32), on any one device.

    The step goes from timestep t to t' (clean: ᾱ' = γ̄' = 1). With x̂ the estimate of the clean latents and n ~ N(0, I):

        dependent noise:    z' = D_γ̄'( a·D_γ̄⁻¹ z + b·x̂ + c·x̂_prev + σ·n )
        independent noise:  z' = a·z + b·D_γ̄' x̂ + c·D_γ̄ x̂ + σ·n

    DDIM with k = √(1-ᾱ'-σ²)/√(1-ᾱ) is, for dependent noise, a = k, b = √ᾱ' - k√ᾱ, c = 0 and, for independent noise,
    a = k, b = √ᾱ', c = -k√ᾱ: ε̃ is then always the one that fits z and x̂, clamped history included.
    DPM-Solver++(2M) with A = √ᾱ'(e⁻ʰ - 1) and r = h_prev/h is a = √((1-ᾱ')/(1-ᾱ)), b = -A(1 + 1/(2r)), c = A/(2r).

    Args:
        alpha_bar: ᾱ_t in (0, 1].
        gamma_bar: γ̄_t in (0, 1].
        gamma_bar_next: γ̄_t' in [0, 1].
        a, b, c, sigma: as in the formulas; c and sigma default to 0.
    """

    alpha_bar: torch.Tensor
    gamma_bar: torch.Tensor
    gamma_bar_next: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor | None = None
    sigma: torch.Tensor | None = None

    def checked(self, op: str, batch: int) -> "StepCoefficients":
        """The same in float64, zeros for what was left out.

        Raises:
            ValueError: a length other than ``batch``, or a level out of its range.
        """
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            value = torch.zeros_like(self.a) if value is None else value
            values[field.name] = check_per_sample(op, f"coefficients.{field.name}", value, batch, low=None)
        if self.a.device.type == "cpu" and batch:
            _check_ranges(op, values)
        return StepCoefficients(**values)

    def mean_factors(self, prediction: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(f, g) with μ̂ = f·z + g·output: (1/√ᾱ, -√(1-ᾱ)/√ᾱ) for eps, (√ᾱ, -√(1-ᾱ)) for v, (0, 1) for x0."""
        signal, noise = self.alpha_bar.sqrt(), (1.0 - self.alpha_bar).sqrt()
        if prediction == "eps":
            return 1.0 / signal, -noise / signal
        if prediction == "v":
            return signal, -noise
        return torch.zeros_like(signal), torch.ones_like(signal)

    def columns(self, prediction: str, guidance_scale: torch.Tensor) -> list[torch.Tensor]:
        """Columns of the kernels' table, in the order of ``csrc/reverse_step.h``."""
        gamma, gamma_next = self.gamma_bar, self.gamma_bar_next
        mix = (gamma.sqrt(), (1.0 - gamma).sqrt())
        mix_next = (gamma_next.sqrt(), (1.0 - gamma_next).sqrt())
        return [guidance_scale, *self.mean_factors(prediction), *mix, self.a, self.b, self.c, self.sigma, *mix_next]


def _check_ranges(op: str, values: dict[str, torch.Tensor]) -> None:
    """Levels lie in [0, 1], and those that a step starts from are not 0; one pass, as steps are short."""
    names = ("alpha_bar", "gamma_bar", "gamma_bar_next", "sigma")
    for name, levels in zip(names, torch.stack([values[name] for name in names]).tolist(), strict=True):
        for level in levels:
            if not 0.0 <= level <= 1.0:
                raise ValueError(f"{op}: coefficients.{name} holds {level}; expected values in [0, 1]")
            if level == 0.0 and name in ("alpha_bar", "gamma_bar"):
                raise ValueError(f"{op}: coefficients.{name} holds 0, from which no step starts; expected (0, 1]")
