"""Two-dimensional turbulence in a periodic box: a pseudo-spectral solver of the vorticity equation.

    ∂ω/∂t + u·∇ω = ν∇²ω − μω + f ,    u = (∂ψ/∂y, −∂ψ/∂x) ,    ∇²ψ = −ω

on a box of side 2π. The force is linear in the vorticity of one band of wavenumbers, with the factor that makes it
inject kinetic energy at exactly the given power P at every instant. So the flow is deterministic and chaotic,
statistically homogeneous, isotropic in the band's directions and steady, with the energy balance

    dE/dt = P − 2νZ − 2μE ,    E = ½⟨|u|²⟩ (energy) ,    Z = ½⟨ω²⟩ (enstrophy).

Space: Fourier modes, truncated by the 2/3 rule, so the quadratic terms carry no aliasing error and the truncated
equations conserve E and Z when ν = μ = P = 0. Time: classical Runge-Kutta of order 4, with the linear terms
integrated exactly (integrating factor). The advection term is evaluated as −[(∂xx − ∂yy)(uv) − ∂xy(u² − v²)], which
takes two inverse and two forward transforms instead of five in advective form (Basdevant, J. Comput. Phys. 50, 1983).

Letters: R runs simulated side by side, S frames, H W the grid; wavenumbers k along W (x) and l along H (y).
"""

import hashlib
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field, model_validator

from dydiff_dist.strict_config import StrictConfig


class TurbulenceConfig(StrictConfig):
    """The flow and how it is sampled. Lengths are in units where the box has side 2π; times follow from the power."""

    resolution: Annotated[int, Field(ge=16, le=2048)] = 64
    """Grid points along each side."""
    viscosity: Annotated[float, Field(ge=0)] = 3e-3
    """ν: kinematic viscosity."""
    drag: Annotated[float, Field(ge=0)] = 0.2
    """μ: linear drag, which takes out the energy that the inverse cascade carries to large scales."""
    power: Annotated[float, Field(ge=0)] = 0.2
    """P: kinetic energy injected per unit time and mass."""
    force_min_wavenumber: Annotated[float, Field(gt=0)] = 3.5
    """Lower edge of the forced band (number of waves in the box)."""
    force_max_wavenumber: Annotated[float, Field(gt=0)] = 5.5
    """Upper edge of the forced band."""
    frame_interval: Annotated[float, Field(gt=0)] = 0.2
    """Time between two stored frames."""
    steps_per_frame: Annotated[int, Field(ge=1)] = 10
    """Solver steps between two stored frames."""
    spin_up_frames: Annotated[int, Field(ge=0)] = 64
    """Frames simulated and dropped before the first stored one, until the flow is statistically steady."""

    @model_validator(mode="after")
    def _band_fits_the_grid(self) -> "TurbulenceConfig":
        if not self.force_min_wavenumber < self.force_max_wavenumber <= self.resolution // 3:
            raise ValueError(
                f"the forced band {self.force_min_wavenumber}..{self.force_max_wavenumber} must be increasing and end "
                f"at or below {self.resolution // 3}, the largest wavenumber that resolution {self.resolution} keeps"
            )
        return self


class VorticitySolver:
    """Advances a batch of vorticity fields, held as spectra ω̂ (R, H, W//3 + 1).

    A spectrum holds the columns of ``torch.fft.rfft2`` that the 2/3 rule keeps; leaving the others out saves a third
    of the work.
    """

    def __init__(self, config: TurbulenceConfig, dtype: torch.dtype = torch.float32):
        """``dtype`` is float32 or float64, the precision of the fields; spectra have the matching complex type."""
        self.config = config
        self.dtype = dtype
        self.num_points = config.resolution
        n = config.resolution
        wave_l = torch.fft.fftfreq(n, 1 / n, dtype=dtype)[:, None]
        wave_k = torch.arange(n // 3 + 1, dtype=dtype)[None, :]
        self.wavenumber_squared = wave_k**2 + wave_l**2
        kept = (wave_l.abs() <= n // 3) & (self.wavenumber_squared > 0)
        self.kept = kept.to(dtype)
        self._inverse_laplacian = torch.where(kept, 1 / self.wavenumber_squared.clamp(min=1), 0.0)
        self._to_velocity = torch.stack((1j * wave_l * self._inverse_laplacian, -1j * wave_k * self._inverse_laplacian))
        self._from_uv = self.kept * (wave_k**2 - wave_l**2)
        self._from_uu_minus_vv = -self.kept * wave_k * wave_l
        # The spectrum holds one of each pair of conjugate modes, so modes off the column k = 0 count twice.
        pair = torch.where(wave_k == 0, 1.0, 2.0).to(dtype)
        self._mean_square_weight = (pair / n**4).expand_as(self.wavenumber_squared)
        wavenumber = self.wavenumber_squared.sqrt()
        band = (wavenumber >= config.force_min_wavenumber) & (wavenumber <= config.force_max_wavenumber)
        self._forced = band.to(dtype) * self.kept
        self.step_size = config.frame_interval / config.steps_per_frame
        decay_rate = config.viscosity * self.wavenumber_squared + config.drag
        self._half_step_decay = torch.exp(-decay_rate * self.step_size / 2)
        self._step_decay = self._half_step_decay**2

    def velocity(self, vorticity_hat: torch.Tensor) -> torch.Tensor:
        """Velocity (R, 2, H, W): channel 0 along W (columns), channel 1 along H (rows)."""
        return self.to_grid(self._to_velocity * vorticity_hat[:, None])

    def to_grid(self, spectrum: torch.Tensor) -> torch.Tensor:
        """The field (..., H, W) of a spectrum (..., H, W//3 + 1)."""
        return torch.fft.irfft(torch.fft.ifft(spectrum, dim=-2), n=self.num_points, dim=-1)

    def to_spectrum(self, field: torch.Tensor) -> torch.Tensor:
        """The spectrum (..., H, W//3 + 1) of a field (..., H, W), cut off along W but not along H."""
        return torch.fft.fft(torch.fft.rfft(field, dim=-1)[..., : self.num_points // 3 + 1], dim=-2)

    def energy(self, vorticity_hat: torch.Tensor) -> torch.Tensor:
        """E = ½⟨|u|²⟩ of each run, (R,)."""
        return 0.5 * self._mean(vorticity_hat, self._inverse_laplacian)

    def enstrophy(self, vorticity_hat: torch.Tensor) -> torch.Tensor:
        """Z = ½⟨ω²⟩ of each run, (R,)."""
        return 0.5 * self._mean(vorticity_hat, self.kept)

    def step(self, vorticity_hat: torch.Tensor) -> torch.Tensor:
        """One step of ``step_size``: Runge-Kutta 4 in the variable exp((νk² + μ)t) ω̂."""
        dt, half, full = self.step_size, self._half_step_decay, self._step_decay
        decayed = half * vorticity_hat
        slope_1 = self._explicit_terms(vorticity_hat)
        slope_2 = self._explicit_terms(decayed + dt / 2 * half * slope_1)
        slope_3 = self._explicit_terms(decayed + dt / 2 * slope_2)
        slope_4 = self._explicit_terms(full * vorticity_hat + dt * half * slope_3)
        return full * vorticity_hat + dt / 6 * (full * slope_1 + 2 * half * (slope_2 + slope_3) + slope_4)

    def advance_frame(self, vorticity_hat: torch.Tensor) -> torch.Tensor:
        """Advances by one frame interval; raises ``ValueError`` when the flow outran the step and blew up."""
        for _ in range(self.config.steps_per_frame):
            vorticity_hat = self.step(vorticity_hat)
        if not bool(torch.isfinite(self.enstrophy(vorticity_hat)).all()):
            raise ValueError(
                f"the simulation blew up: {self.config.steps_per_frame} steps per frame are too few for this flow; "
                "raise steps_per_frame (or viscosity)"
            )
        return vorticity_hat

    def random_state(self, seed: int, split: str, runs: range) -> torch.Tensor:
        """Random ω̂ (R, H, W//3 + 1) with energy near the steady state's; each run depends only on its own number."""
        n = self.num_points
        noise = torch.stack(
            [torch.randn(n, n, generator=_generator(seed, split, run), dtype=self.dtype) for run in runs]
        )
        centre = (self.config.force_min_wavenumber + self.config.force_max_wavenumber) / 2
        envelope = torch.exp(-(((self.wavenumber_squared.sqrt() - centre) / 1.5) ** 2)) * self.kept
        vorticity_hat = self.to_spectrum(noise) * envelope
        steady_energy = self.config.power / (2 * self.config.drag) if self.config.drag and self.config.power else 0.5
        return vorticity_hat * (0.8 * steady_energy / self.energy(vorticity_hat)).sqrt()[:, None, None]

    def _explicit_terms(self, vorticity_hat: torch.Tensor) -> torch.Tensor:
        """Advection and force, (R, H, W//3 + 1)."""
        u_RHW, v_RHW = self.velocity(vorticity_hat).unbind(1)
        uv_hat, uu_minus_vv_hat = self.to_spectrum(torch.stack((u_RHW * v_RHW, u_RHW**2 - v_RHW**2)))
        advection = self._from_uv * uv_hat + self._from_uu_minus_vv * uu_minus_vv_hat
        if self.config.power == 0:
            return advection
        band_energy = 0.5 * self._mean(vorticity_hat, self._inverse_laplacian * self._forced)
        rate = self.config.power / (2 * band_energy)
        return advection + rate[:, None, None] * self._forced * vorticity_hat

    def _mean(self, vorticity_hat: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Mean over the box of the square of the field with spectrum √weight · ω̂ (Parseval), (R,)."""
        power_spectrum = vorticity_hat.real**2 + vorticity_hat.imag**2
        return (self._mean_square_weight * weight * power_spectrum).sum((-2, -1))


def simulate(
    config: TurbulenceConfig, seed: int, split: str, runs: range, num_segments: int, num_frames: int, gap_frames: int
) -> Iterator[torch.Tensor]:
    """Simulates ``runs`` side by side and yields ``num_segments`` stretches of velocity, each (R, S, 2, H, W) float32.

    Between two stretches ``gap_frames`` frames are dropped, so that they share little memory of each other. The
    result is a function of the arguments alone on a given machine; another FFT library rounds differently, and chaos
    then leads to other trajectories of the same statistics.
    """
    solver = VorticitySolver(config)
    state = solver.random_state(seed, split, runs)
    for _ in range(config.spin_up_frames):
        state = solver.advance_frame(state)
    for segment in range(num_segments):
        frames = []
        for _ in range(num_frames):
            frames.append(solver.velocity(state))
            state = solver.advance_frame(state)
        yield torch.stack(frames, dim=1)
        if segment + 1 < num_segments:
            for _ in range(gap_frames):
                state = solver.advance_frame(state)


def _generator(seed: int, split: str, run: int) -> torch.Generator:
    """A generator of its own for each (seed, split, run), so that no split shares a run with another."""
    digest = hashlib.blake2b(f"turbulence/{seed}/{split}/{run}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
