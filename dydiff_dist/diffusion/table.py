"""A diffusion process as a table of six numbers per timestep.

With Dynamics operators along frames, A = D[γ_x] on the frames and B = D[γ_n] on the noise, and μ = A x, n = B ε:

    z = a μ + s n            target = p n + q μ        (a, s, γ_x, γ_n, p, q: one row of the table per timestep)
    μ̂ = (p z - s out)/Δ      n̂ = (a out - q z)/Δ       Δ = a p - s q

``mixes_target=False`` takes the target before mixing, p ε + q x. Every process and prediction here is such a table:

    | process             | a, s             | γ_x, γ_n |      | prediction | p, q                      |
    |---------------------|------------------|----------|      |------------|---------------------------|
    | dydiff              | √ᾱ, √(1-ᾱ)       | γ̄, γ̄     |      | eps        | 1, 0                      |
    | dydiff_independent  | the same         | γ̄, 1     |      | v          | a, -s                     |
    | standard            | the same         | 1, 1     |      | x0         | 0, 1, before mixing       |
    | correlated_noise    | the same         | 1, γ̄     |      | velocity   | 1, -1                     |
    | flow_matching       | 1-τ, τ           | 1, 1     |      | edm        | -c_skip s/c_out, (1-c_skip a)/c_out |
    | edm                 | 1, σ             | 1, 1     |      |            |                           |

dydiff and dydiff_independent are arXiv 2503.00951; correlated noise is PYoCo's (Ge et al. 2023) and NowcastDiT's;
flow matching Lipman et al. 2023 with the straight path; EDM Karras et al. 2022, table 1.

Letters: N timesteps, B batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dydiff_dist.diffusion import schedules
from dydiff_dist.diffusion.names import MixedParts, look_up
from dydiff_kernels import Levels

if TYPE_CHECKING:
    from dydiff_dist.diffusion.config import DiffusionConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class ProcessTable:
    """What a process does at each of N timesteps; the timestep after the last reverse step, -1, is clean.

    Raises:
        ValueError: columns of different lengths, or numbers from which x and ε can't be recovered.
    """

    signal: Tensor
    """a, (N,) float64, falling."""
    noise: Tensor
    """s > 0, (N,) float64, rising against a."""
    frame_gamma: Tensor
    """γ_x in (0, 1], (N,) float64: the Dynamics operator on the frames; 1 is no mixing."""
    noise_gamma: Tensor
    """γ_n in (0, 1], (N,) float64: the Dynamics operator on the noise."""
    target_noise: Tensor
    """p, (N,) float64."""
    target_signal: Tensor
    """q, (N,) float64."""
    mixes_target: bool = True
    """Whether the network predicts p n + q μ; False: p ε + q x, before the operators."""
    input_std: Tensor | None = None
    """(N,) float64: what z is divided by before the network sees it; None shows it z."""

    def __post_init__(self) -> None:
        for field in fields(self):
            column = getattr(self, field.name)
            if isinstance(column, Tensor) and column.shape != self.signal.shape:
                raise ValueError(
                    f"column {field.name} has shape {tuple(column.shape)}; signal {tuple(self.signal.shape)}"
                )
        lost = (self.determinant == 0).nonzero()
        if len(lost):
            raise ValueError(
                f"at timestep {int(lost[0])} the target says nothing of the frames (signal {self.signal[lost[0, 0]]:.3g}, "
                f"noise {self.noise[lost[0, 0]]:.3g}); use prediction 'v' or 'x0', or turn zero_terminal_snr off"
            )
        if not self.mixes_target and not self.shares_operator and bool(self.target_noise.any()):
            raise ValueError(
                "a target before mixing that holds noise needs the same operator on frames and noise; "
                "predict x0, or the mixed target"
            )

    @property
    def num_timesteps(self) -> int:
        """N."""
        return len(self.signal)

    @cached_property
    def determinant(self) -> Tensor:
        """Δ = a p - s q, (N,) float64: what a network's output is divided by on its way to x̂."""
        return self.signal * self.target_noise - self.noise * self.target_signal

    @cached_property
    def log_snr(self) -> Tensor:
        """λ = log(a/s), (N,) float64: half the log of the signal-to-noise ratio; -inf where there is no signal."""
        return torch.log(self.signal) - torch.log(self.noise)

    @cached_property
    def shares_operator(self) -> bool:
        """Whether frames and noise are mixed alike: z is then standard diffusion of u = D⁻¹z."""
        return torch.equal(self.frame_gamma, self.noise_gamma)

    @cached_property
    def mixes(self) -> bool:
        """Whether any operator does anything."""
        return bool((self.frame_gamma != 1).any() or (self.noise_gamma != 1).any())

    @cached_property
    def is_whitened_standard(self) -> bool:
        """Whether B⁻¹z is standard diffusion of one and the same B⁻¹A x at all timesteps: operators shared, or constant.

        Solvers that use x̂ of several timesteps (2M, Heun) keep their order then, and only then.
        """
        constant = bool(
            (self.frame_gamma == self.frame_gamma[0]).all() and (self.noise_gamma == self.noise_gamma[0]).all()
        )
        return self.shares_operator or constant

    @cached_property
    def targets_clean_frames(self) -> bool:
        """Whether the target is x itself, which then need not be formed."""
        return not self.mixes_target and not bool(self.target_noise.any()) and bool((self.target_signal == 1).all())

    @cached_property
    def _rows(self) -> dict[torch.device, Tensor]:
        """(N + 1, 6) by device; row t + 1 belongs to timestep t, so that -1 finds clean frames: a = 1, s = 0, no mixing."""
        clean = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
        columns = [getattr(self, name) for name in Levels._fields]
        return {torch.device("cpu"): torch.cat((clean, torch.stack(columns, 1)))}

    def at(self, timesteps: Tensor) -> Levels:
        """The rows at ``timesteps`` (B,) int64 in -1..N-1, on their device, (B,) float64 each."""
        if timesteps.device not in self._rows:
            self._rows[timesteps.device] = self._rows[torch.device("cpu")].to(timesteps.device)
        # index_select, unlike indexing, doesn't count indices below 0 from the end
        return Levels(*self._rows[timesteps.device].index_select(0, timesteps + 1).T.contiguous())


Path = Callable[["DiffusionConfig"], tuple[Tensor, Tensor]]
Target = Callable[[Tensor, Tensor, "DiffusionConfig"], tuple[Tensor, Tensor]]
ProcessBuilder = Callable[["DiffusionConfig"], ProcessTable]


@dataclass(frozen=True)
class Prediction:
    """What a network predicts, as the target's two columns."""

    target: Target
    """(a, s, configuration) -> (p, q), (N,) each."""
    mixes_target: bool = True


def _edm_target(a: Tensor, s: Tensor, config: "DiffusionConfig") -> tuple[Tensor, Tensor]:
    """F of Karras et al. 2022, Eq. 7 and table 1: x = c_skip z + c_out F with c_skip = a σ_d²/v, c_out = s σ_d/√v,
    v = a² σ_d² + s² (theirs at a = 1): then F has unit variance."""
    data = config.sigma_data**2
    variance = a.square() * data + s.square()
    c_skip, c_out = a * data / variance, s * config.sigma_data / variance.sqrt()
    return -c_skip * s / c_out, (1 - c_skip * a) / c_out


PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(lambda a, s, config: (torch.ones_like(a), torch.zeros_like(a))),
    "v": Prediction(lambda a, s, config: (a, -s)),
    "x0": Prediction(lambda a, s, config: (torch.zeros_like(a), torch.ones_like(a)), mixes_target=False),
    "velocity": Prediction(lambda a, s, config: (torch.ones_like(a), -torch.ones_like(a))),
    "edm": Prediction(_edm_target),
}


def register_prediction(name: str, prediction: Prediction) -> None:
    """Makes ``diffusion.prediction = name`` mean ``prediction``.

    Args:
        name: not yet taken.
        prediction: the target's columns p and q from a and s.

    Example:
        >>> import torch
        >>> from dydiff_dist.diffusion import build_process
        >>> register_prediction("half_v", Prediction(lambda a, s, config: (a / 2, -s / 2)))
        >>> build_process(prediction="half_v").table.target_noise[0] < 0.5
        tensor(True)
    """
    _register("prediction", PREDICTIONS, name, prediction)


def _variance_preserving(config: "DiffusionConfig") -> tuple[Tensor, Tensor]:
    """a = √ᾱ, s = √(1-ᾱ)."""
    alpha_bar = schedules.alpha_bar_schedule(
        config.num_timesteps,
        config.beta_schedule,
        zero_terminal_snr=config.zero_terminal_snr,
        snr_factor=config.snr_factor,
    )
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def _straight(config: "DiffusionConfig") -> tuple[Tensor, Tensor]:
    """a = 1-τ, s = τ with τ = (t + 1)/N."""
    tau = torch.arange(1, config.num_timesteps + 1, dtype=torch.float64) / config.num_timesteps
    return 1 - tau, tau


def _variance_exploding(config: "DiffusionConfig") -> tuple[Tensor, Tensor]:
    """a = 1, s = σ_t, spaced as in Karras et al. 2022, Eq. 5 with ρ = 7, from σ_min at t = 0 to σ_max at N-1."""
    fraction = torch.linspace(0, 1, config.num_timesteps, dtype=torch.float64)
    low, high = config.sigma_min ** (1 / 7), config.sigma_max ** (1 / 7)
    sigma = (low + fraction * (high - low)) ** 7
    return torch.ones_like(sigma), sigma


@dataclass(frozen=True)
class _Row:
    """One of the shipped processes."""

    path: Path
    mixed: MixedParts
    prediction: str
    """Where the configuration names none."""
    choose_mixed: bool = False
    """Whether ``diffusion.mixes`` may change what is mixed."""

    def __call__(self, config: "DiffusionConfig") -> ProcessTable:
        signal, noise = self.path(config)
        if config.mixes is not None and not self.choose_mixed:
            raise ValueError(
                f"mixes is {config.mixes!r}, and process {config.process!r} says itself that {self.mixed} of frames and "
                "noise are mixed; leave mixes out, or choose another process"
            )
        mixed = self.mixed if config.mixes is None else config.mixes
        gamma_bar = schedules.gamma_bar_schedule(len(signal), config.gamma_schedule, config.gamma_ratio)
        none = torch.ones_like(gamma_bar)
        name = self.prediction if config.prediction is None else config.prediction
        prediction = look_up("prediction", name, PREDICTIONS)
        p, q = prediction.target(signal, noise, config)
        return ProcessTable(
            signal=signal,
            noise=noise,
            frame_gamma=gamma_bar if mixed in ("both", "frames") else none,
            noise_gamma=gamma_bar if mixed in ("both", "noise") else none,
            target_noise=p,
            target_signal=q,
            mixes_target=prediction.mixes_target,
            input_std=self._input_std(signal, noise, config),
        )

    def _input_std(self, signal: Tensor, noise: Tensor, config: "DiffusionConfig") -> Tensor | None:
        """1/c_in of Karras et al. 2022 for paths whose z doesn't keep unit variance."""
        if self.path is not _variance_exploding:
            return None
        return (signal.square() * config.sigma_data**2 + noise.square()).sqrt()


PROCESSES: dict[str, ProcessBuilder] = {
    "dydiff": _Row(_variance_preserving, "both", "eps"),
    "dydiff_independent": _Row(_variance_preserving, "frames", "eps"),
    "standard": _Row(_variance_preserving, "none", "eps"),
    "correlated_noise": _Row(_variance_preserving, "noise", "eps"),
    "flow_matching": _Row(_straight, "none", "velocity", choose_mixed=True),
    "edm": _Row(_variance_exploding, "none", "edm", choose_mixed=True),
}


def register_process(name: str, builder: ProcessBuilder) -> None:
    """Makes ``diffusion.process = name`` mean the table that ``builder`` makes of the diffusion section.

    Args:
        name: not yet taken.
        builder: configuration -> table.

    Example:
        >>> import torch
        >>> from dydiff_dist.diffusion import build_process
        >>> def cosine_path(config):
        ...     angle = torch.linspace(0.01, 1.56, config.num_timesteps, dtype=torch.float64)
        ...     one = torch.ones_like(angle)
        ...     return ProcessTable(
        ...         signal=angle.cos(), noise=angle.sin(), frame_gamma=one, noise_gamma=one,
        ...         target_noise=angle.cos(), target_signal=-angle.sin(),
        ...     )
        >>> register_process("cosine_path", cosine_path)
        >>> build_process(process="cosine_path").num_timesteps
        1000
    """
    _register("process", PROCESSES, name, builder)


def _register(kind: str, registry: dict, name: str, entry: object) -> None:
    if name in registry:
        raise ValueError(f"{kind} {name!r} is registered already; choose another name")
    registry[name] = entry
