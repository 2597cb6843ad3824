"""A diffusion process as a table of six numbers per timestep.

With Dynamics operators along frames, A = D[γ_x] on the frames and B = D[γ_n] on the noise, and μ = A x, n = B ε:

    z = a μ + s n            target = p n + q μ        (a, s, γ_x, γ_n, p, q: one row of the table per timestep)
    μ̂ = (p z - s out)/Δ      n̂ = (a out - q z)/Δ       Δ = a p - s q

ε is white, or has a covariance along frames that is the same at every timestep (``noise_operator``).
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
from dydiff_dist.diffusion.names import MixedParts, TimestepDensity, look_up, register
from dydiff_kernels import Levels

if TYPE_CHECKING:
    from dydiff_dist.diffusion.config import DiffusionConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class ProcessTable:
    """What a process does at each of N timesteps; the timestep after the last reverse step, -1, is clean.

    Raises:
        ValueError: columns of another shape or type, values out of range, or numbers from which x can't be recovered.
    """

    signal: Tensor
    """a ≥ 0, (N,) float64; a/s falls from timestep to timestep."""
    noise: Tensor
    """s > 0, (N,) float64."""
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
    timestep_shares: Tensor | None = None
    """(N,) float64, of sum 1: how often training draws each timestep; None is all alike."""
    frame_operator: Tensor | None = None
    """T, (S, S) float64, lower triangular, the identity on history frames: the process is run on T x in place of x."""
    noise_operator: Tensor | None = None
    """L, alike: ε is L times white noise, wherever the process draws any."""

    def __post_init__(self) -> None:
        self._check_columns()
        lost = (self.determinant == 0).nonzero().flatten()
        if len(lost):
            t = int(lost[0])
            raise ValueError(
                f"at timestep {t} the target says nothing of the frames (signal {self.signal[t]:.3g}, noise "
                f"{self.noise[t]:.3g}); use prediction 'v' or 'x0', or a schedule that leaves some signal "
                "(zero_terminal_snr off)"
            )
        if not self.mixes_target and not self.shares_operator and bool(self.target_noise.any()):
            raise ValueError(
                "a target before mixing that holds noise needs the same operator on frames and noise; "
                "predict x0, or the mixed target"
            )

    def _check_columns(self) -> None:
        for field in fields(self):
            column = getattr(self, field.name)
            if not isinstance(column, Tensor) or field.name.endswith("_operator"):
                continue
            if column.ndim != 1 or column.shape != self.signal.shape or column.dtype != torch.float64:
                raise ValueError(
                    f"column {field.name} is {column.dtype} of shape {tuple(column.shape)}; it must be float64, one "
                    f"number for each timestep, as signal, {tuple(self.signal.shape)}"
                )
            wrong = (~column.isfinite()).nonzero().flatten()
            if len(wrong):
                raise ValueError(f"column {field.name} holds {column[wrong[0]]} at timestep {wrong[0]}; give a number")
        holds = {
            "signal": self.signal >= 0,
            "noise": self.noise > 0,
            "frame_gamma": (self.frame_gamma > 0) & (self.frame_gamma <= 1),
            "noise_gamma": (self.noise_gamma > 0) & (self.noise_gamma <= 1),
            "signal/noise": (self.signal / self.noise).diff() < 0,
            "timestep_shares": torch.ones(1) if self.timestep_shares is None else self.timestep_shares >= 0,
        }
        for name, everywhere in holds.items():
            if not bool(everywhere.all()):
                raise ValueError(
                    f"the process' {name} is out of range at some timestep; signal must be at least 0, noise above 0, "
                    "gammas in (0, 1], shares at least 0, and signal/noise must fall"
                )

    def __repr__(self) -> str:
        """Without the columns, which would fill pages."""
        return f"{type(self).__name__}({self.num_timesteps} timesteps)"

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
        """Whether B⁻¹z is standard diffusion of one and the same B⁻¹A x throughout: operators shared, or constant.

        With a noise operator L that is L⁻¹B⁻¹z, and the same holds, as L is constant.

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
    def _summed_shares(self) -> Tensor | None:
        return None if self.timestep_shares is None else self.timestep_shares.cumsum(0)

    def timesteps_at(self, quantiles: Tensor) -> Tensor:
        """Timesteps for training, int64, of ``quantiles`` in [0, 1): uniform draws, any shape, on the CPU."""
        if self._summed_shares is None:
            found = (quantiles.double() * self.num_timesteps).long()
        else:
            found = torch.searchsorted(self._summed_shares, quantiles.double(), right=True)
        return found.clamp(max=self.num_timesteps - 1)

    @cached_property
    def _rows(self) -> dict[torch.device, Tensor]:
        """(N + 1, 6) by device. Row t + 1 is that of timestep t: -1 finds clean frames, a = 1, s = 0, unmixed."""
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

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> from dydiff_dist.diffusion import build_process
        >>> register_prediction("half_v", Prediction(lambda a, s, config: (a / 2, -s / 2)))
        >>> v, half = build_process(prediction="v"), build_process(prediction="half_v")
        >>> bool((half.table.target_noise == v.table.target_noise / 2).all())
        True
    """
    register("prediction", PREDICTIONS, name, prediction)


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
    if not config.sigma_min < config.sigma_max:
        raise ValueError(f"sigma_min is {config.sigma_min} and sigma_max {config.sigma_max}; sigma_min must be smaller")
    fraction = torch.linspace(0, 1, config.num_timesteps, dtype=torch.float64)
    low, high = config.sigma_min ** (1 / 7), config.sigma_max ** (1 / 7)
    sigma = (low + fraction * (high - low)) ** 7
    return torch.ones_like(sigma), sigma


def timestep_shares(signal: Tensor, noise: Tensor, density: TimestepDensity) -> Tensor | None:
    """How often each timestep is drawn, (N,) float64 of sum 1; None is all alike.

    Args:
        signal, noise: a and s, (N,).
        density: "uniform", or mean and deviation of log(s/a), which then is normal. For EDM that is log σ, (-1.2, 1.2)
            in Karras et al. 2022, table 1; for flow matching log(τ/(1-τ)), (0, 1) in Esser et al. 2024, section 3.1.
            What lies beyond the first and the last timestep is theirs.
    """
    if density == "uniform":
        return None
    mean, deviation = density
    level = (torch.log(noise) - torch.log(signal) - mean) / deviation
    between = torch.special.ndtr((level[1:] + level[:-1]) / 2)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torch.cat((ends[:1], between, ends[1:])).diff()


_ALPHA_BAR_FIELDS = frozenset({"beta_schedule", "zero_terminal_snr", "snr_factor"})
_SIGMA_FIELDS = frozenset({"sigma_min", "sigma_max"})
PATH_FIELDS = _ALPHA_BAR_FIELDS | _SIGMA_FIELDS
"""Fields of the configuration that say how signal and noise run, each read by some processes only."""


@dataclass(frozen=True)
class ProcessRow:
    """A process that goes with every prediction: a path of signal and noise, and what the Dynamics operator acts on."""

    path: Path
    """Configuration -> (a, s), (N,) float64 each."""
    mixed: MixedParts
    prediction: str
    """Where the configuration names none."""
    density: TimestepDensity = "uniform"
    """Of timesteps in training, where the configuration says nothing; see ``timestep_shares``."""
    path_fields: frozenset[str] | None = None
    """What of the configuration the path reads, of ``PATH_FIELDS``; others are refused. None may read any."""
    choose_mixed: bool = False
    """Whether ``diffusion.mixes`` may change what is mixed."""
    scales_input: bool = False
    """Whether the network sees z over √(a² σ_d² + s²), 1/c_in of Karras et al. 2022; not needed where z keeps to 1."""

    def __call__(self, config: "DiffusionConfig") -> ProcessTable:
        """The table, with the prediction that ``config`` names."""
        self._check_fields(config)
        if config.mixes is not None and not self.choose_mixed:
            raise ValueError(
                f"mixes is {config.mixes!r}, and process {config.process!r} says itself what is mixed; leave mixes "
                "out, or choose another process"
            )
        mixed = self.mixed if config.mixes is None else config.mixes
        signal, noise = self.path(config)
        gamma_bar = schedules.gamma_bar_schedule(len(signal), config.gamma_schedule, config.gamma_ratio)
        none = torch.ones_like(gamma_bar)
        prediction = look_up("prediction", config.prediction or self.prediction, PREDICTIONS)
        p, q = prediction.target(signal, noise, config)
        std = (signal.square() * config.sigma_data**2 + noise.square()).sqrt()
        return ProcessTable(
            signal=signal,
            noise=noise,
            frame_gamma=gamma_bar if mixed in ("both", "frames") else none,
            noise_gamma=gamma_bar if mixed in ("both", "noise") else none,
            target_noise=p,
            target_signal=q,
            mixes_target=prediction.mixes_target,
            input_std=std if self.scales_input else None,
            timestep_shares=timestep_shares(signal, noise, self.density),
        )

    def _check_fields(self, config: "DiffusionConfig") -> None:
        """Raises ``ValueError`` for a field that was changed and has no effect on this process."""
        unread = frozenset() if self.path_fields is None else PATH_FIELDS - self.path_fields
        if not self.scales_input and config.prediction in ("eps", "v", "x0", "velocity"):
            unread |= {"sigma_data"}
        for name in sorted(unread):
            value = getattr(config, name)
            if value != type(config).model_fields[name].default:
                raise ValueError(
                    f"{name} is {value!r}, and process {config.process!r} with prediction {config.prediction!r} "
                    "doesn't read it; leave it out"
                )


PROCESSES: dict[str, ProcessBuilder] = {
    "dydiff": ProcessRow(_variance_preserving, "both", "eps", path_fields=_ALPHA_BAR_FIELDS),
    "dydiff_independent": ProcessRow(_variance_preserving, "frames", "eps", path_fields=_ALPHA_BAR_FIELDS),
    "standard": ProcessRow(_variance_preserving, "none", "eps", path_fields=_ALPHA_BAR_FIELDS),
    "correlated_noise": ProcessRow(_variance_preserving, "noise", "eps", path_fields=_ALPHA_BAR_FIELDS),
    "flow_matching": ProcessRow(_straight, "none", "velocity", path_fields=frozenset(), choose_mixed=True),
    "edm": ProcessRow(
        _variance_exploding, "none", "edm", (-1.2, 1.2), path_fields=_SIGMA_FIELDS, choose_mixed=True, scales_input=True
    ),
}


def register_process(name: str, builder: ProcessBuilder) -> None:
    """Makes ``diffusion.process = name`` mean the table that ``builder`` makes of the diffusion section.

    Args:
        name: not yet taken.
        builder: a row, with which every prediction goes; or any function configuration -> table, which then says itself
            what the network predicts.

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> import torch
        >>> from dydiff_dist.diffusion import build_process
        >>> def circle(config):
        ...     angle = torch.linspace(0.01, 1.56, config.num_timesteps, dtype=torch.float64)
        ...     return angle.cos(), angle.sin()
        >>> register_process("circle", ProcessRow(circle, mixed="noise", prediction="v"))
        >>> build_process(process="circle", num_timesteps=3).table.signal
        tensor([1.0000, 0.7074, 0.0108], dtype=torch.float64)
    """
    register("process", PROCESSES, name, builder)
