"""Configuration of the diffusion process."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from torch import Tensor

from dydiff_dist.diffusion.dynamics import as_matrix, mixed_signal_variance
from dydiff_dist.diffusion.names import (
    BetaSchedule,
    GammaSchedule,
    LossFrames,
    LossSpace,
    MixedParts,
    NetworkSpace,
    SimpleForecastName,
    TimestepDensity,
    check_name,
    look_up,
)
from dydiff_dist.diffusion.objective import build_objective
from dydiff_dist.diffusion.process import DiffusionProcess
from dydiff_dist.diffusion.simple_forecast import noise_operator, relative_operator
from dydiff_dist.diffusion.table import PROCESSES, ProcessRow, ProcessTable, timestep_shares
from dydiff_dist.strict_config import StrictConfig, describe_error
from dydiff_kernels import Backend


class DiffusionConfig(StrictConfig):
    """The process: its row of the table in ``diffusion/table.py``, what the network predicts, and the loss."""

    process: str = "dydiff"
    """dydiff (the method), dydiff_independent (its ablation: noise is not mixed), standard, correlated_noise (noise
    alone is mixed), flow_matching, edm; or a registered one."""
    num_timesteps: int = Field(default=1000, ge=2, le=1_000_000)
    """N, diffusion timesteps in training."""
    beta_schedule: BetaSchedule = "cosine"
    """Noise schedule of the variance-preserving processes. flow_matching and edm refuse it and the next two fields, and
    other processes edm's: a field that has no effect is refused."""
    zero_terminal_snr: bool = False
    """Whether their last timestep is pure noise (Lin et al. 2024); needs prediction v or x0."""
    snr_factor: float = Field(default=1.0, gt=0)
    """Times their signal-to-noise ratio at every timestep; above 1 there is less noise (Hoogeboom et al. 2023)."""
    sigma_min: float = Field(default=0.002, gt=0)
    """Noise of edm at its first timestep, in units of the data's deviation."""
    sigma_max: float = Field(default=80.0, gt=0)
    """Noise of edm at its last timestep."""
    sigma_data: float = Field(default=1.0, gt=0)
    """The data's standard deviation in network units, which edm's preconditioning is built on."""
    timestep_density: TimestepDensity | None = None
    """How often training draws each timestep: uniform, or mean and deviation of log(noise/signal), which is normal;
    0, 1 makes flow matching's times logit-normal. null is the process's own: -1.2, 1.2 of edm, else uniform."""
    gamma_schedule: GammaSchedule | tuple[float, ...] = "cosine"
    """Dynamics schedule γ̄; none is no mixing, constant is 1 - gamma_ratio everywhere; or γ̄ itself, one per timestep.
    linear_carry is NowcastDiT's, whose α is √(ratio/(1 - ratio)): α 0.5 is ratio 0.2."""
    gamma_ratio: float = Field(default=0.5, ge=0, le=1)
    """How far γ̄ falls: from 1 to 1 - ratio. The authors use 0.5 for video and turbulence."""
    mixes: MixedParts | None = None
    """What the Dynamics operator acts on in flow_matching and edm: none (their default), both, frames or noise."""
    frames_relative_to: SimpleForecastName | None = None
    """Run the process on future frames less a simple forecast of them, over its error's deviation at the lead time:
    persistence, or a regression on the history by the training data's frame autocovariance. null: plain frames."""
    noise_like_errors_of: SimpleForecastName | None = None
    """Draw noise with the covariance along frames that the errors of such a forecast have, white on the history, in
    processes that mix nothing: standard, flow_matching, edm. null: white noise."""
    prediction: str | None = None
    """What the network predicts: eps, v, x0, velocity, edm, or a registered one; null is the process's own: eps, and
    velocity and edm for flow_matching and edm. v forecasts far better than eps on small budgets."""
    network_space: NetworkSpace = "mixed"
    """unmixed: the network sees standard diffusion; with loss_space mixed, the control for the loss weighting alone."""
    normalize_input: bool = False
    """Divide the network's input by its standard deviation at the timestep (from the data's frame autocovariance)."""
    loss_space: LossSpace = "target"
    """Where errors are measured: target (the authors), mixed or unmixed."""
    loss_frames: LossFrames = "all"
    """all (the authors) or future: leave history frames out of the loss."""
    min_snr: float | None = Field(default=None, gt=0)
    """Limit of min-SNR weighting (Hang et al. 2023; 5 is usual); null for none."""

    retired: ClassVar[dict[str, Any]] = {"beta_start": None, "beta_end": None}

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, tree: Any) -> Any:
        """Reads ``dependent_noise``, older versions' name of the process; fills in the process's own prediction."""
        if not isinstance(tree, dict):
            return tree
        tree = dict(tree)
        if "dependent_noise" in tree:
            dependent = tree.pop("dependent_noise")
            if not isinstance(dependent, bool) or "process" in tree:
                raise ValueError(
                    f"dependent_noise is {dependent!r}; it is true or false in older files, without process: leave it "
                    "out, and give process 'dydiff' for true, 'dydiff_independent' for false"
                )
            tree["process"] = "dydiff" if dependent else "dydiff_independent"
        if tree.get("prediction") is None:
            row = PROCESSES.get(str(tree.get("process", "dydiff")))
            tree["prediction"] = row.prediction if isinstance(row, ProcessRow) else None
        return tree

    @field_validator("gamma_schedule", "timestep_density", mode="before")
    @classmethod
    def _numbers_to_tuple(cls, value: object) -> object:
        if isinstance(value, (np.ndarray, Tensor)):
            value = value.tolist()
        return tuple(value) if isinstance(value, list) else value

    @field_validator("timestep_density")
    @classmethod
    def _check_density(cls, value: TimestepDensity | None) -> TimestepDensity | None:
        if isinstance(value, tuple) and not (all(map(math.isfinite, value)) and value[1] > 0):
            raise ValueError(f"timestep_density is {value}; give a mean and a deviation above 0, or 'uniform'")
        return value

    @model_validator(mode="after")
    def _check_combination(self) -> "DiffusionConfig":
        self.build_without_data()
        return self

    @property
    def follows_from_data(self) -> bool:
        """Whether the process follows from the frame autocovariance of the training data."""
        return self.normalize_input or bool(self.frames_relative_to or self.noise_like_errors_of)

    def build_without_data(self) -> DiffusionProcess:
        """The process as if frames were two and alike by half, where it follows from data: to be checked, not used."""
        return self.build(frame_autocovariance=[1.0, 0.5], num_history_frames=1)

    def build(
        self,
        frame_autocovariance: Sequence[float] | np.ndarray | Tensor | None = None,
        backend: Backend = "auto",
        *,
        num_history_frames: int = 0,
    ) -> DiffusionProcess:
        """The process.

        Args:
            frame_autocovariance: E[xʳ xˢ] of the data in network units, by lag (S,) or as a matrix (S, S); needed by
                what ``follows_from_data``.
            num_history_frames: H, frames that are given to a forecast; needed by ``frames_relative_to`` and
                ``noise_like_errors_of``.
            backend: of the kernels.

        Raises:
            ValueError: an unknown name, fields that don't go together, or an autocovariance that is missing or of
                another shape.
        """
        check_name("backend", backend, Backend)
        builder = look_up("process", self.process, PROCESSES)
        if self.prediction is not None and not isinstance(builder, ProcessRow):
            raise ValueError(
                f"prediction is {self.prediction!r}, and process {self.process!r} says itself what the network "
                "predicts; leave prediction out"
            )
        table = builder(self)
        if self.timestep_density is not None:
            shares = timestep_shares(table.signal, table.noise, self.timestep_density)
            table = replace(table, timestep_shares=shares)
        table = self._with_simple_forecasts(table, frame_autocovariance, num_history_frames)
        gamma_bar = table.frame_gamma
        if self.network_space == "unmixed":
            table = _unmixed(table)
        objective = build_objective(self, table, gamma_bar)
        if self.normalize_input:
            table = replace(table, input_std=_measured_std(table, frame_autocovariance))
        return DiffusionProcess(table, objective, backend)

    def _with_simple_forecasts(
        self,
        table: ProcessTable,
        frame_autocovariance: Sequence[float] | np.ndarray | Tensor | None,
        num_history_frames: int,
    ) -> ProcessTable:
        """The process run on frames relative to a simple forecast, and with noise like one's errors, as configured."""
        if self.frames_relative_to is not None:
            covariance = _autocovariance(frame_autocovariance, "frames_relative_to")
            operator = relative_operator(covariance, num_history_frames, self.frames_relative_to)
            table = replace(table, frame_operator=operator)
        name = self.noise_like_errors_of
        if name is None:
            return table
        if table.mixes:
            raise ValueError(
                f"noise_like_errors_of is {name!r}, and process {self.process!r} mixes frames or noise by itself; use "
                "'standard', or 'flow_matching' or 'edm' with mixes 'none', or leave it out"
            )
        covariance = _autocovariance(frame_autocovariance, "noise_like_errors_of")
        operator = noise_operator(covariance, num_history_frames, name, table.frame_operator)
        return replace(table, noise_operator=operator)

    def describe(self) -> str:
        """The process by name, γ̄ where there is one, what it is run on, its noise, and what the network predicts."""
        parts, schedule = [self.process], self.gamma_schedule
        if self.build_without_data().table.mixes or self.network_space == "unmixed":
            named = isinstance(schedule, str)
            parts.append(f"gamma {schedule} (ratio {self.gamma_ratio})" if named else "gamma as configured")
        if self.frames_relative_to is not None:
            parts.append(f"frames relative to {self.frames_relative_to}")
        if self.noise_like_errors_of is not None:
            parts.append(f"noise like the errors of {self.noise_like_errors_of}")
        if self.prediction is not None:
            parts.append(f"predicts {self.prediction}")
        return ", ".join(parts)


def build_process(
    *,
    frame_autocovariance: Sequence[float] | np.ndarray | Tensor | None = None,
    num_history_frames: int = 0,
    backend: Backend = "auto",
    **fields: Any,
) -> DiffusionProcess:
    """A process from fields of `DiffusionConfig`, as Python code wants it.

    Args:
        frame_autocovariance, num_history_frames: as for `DiffusionConfig.build`.
        backend: of the kernels: "auto", "triton", "cpp" or "reference".
        **fields: see `DiffusionConfig`.

    Raises:
        ValueError: one line: unknown field, value out of range, or fields that don't go together.

    Examples:
        >>> build_process(gamma_ratio=0.5, prediction="v").num_timesteps
        1000
        >>> build_process(process="flow_matching").table.target_signal[0].item()
        -1.0
    """
    try:
        config = DiffusionConfig(**fields)
    except ValidationError as error:
        raise ValueError(describe_error(error, DiffusionConfig)) from None
    return config.build(frame_autocovariance, backend, num_history_frames=num_history_frames)


def _unmixed(table: ProcessTable) -> ProcessTable:
    """The process of u = D⁻¹z, which the network then sees and predicts."""
    if not table.shares_operator:
        raise ValueError("network_space 'unmixed' needs frames and noise mixed alike; use process 'dydiff'")
    one = torch.ones_like(table.signal)
    return replace(table, frame_gamma=one, noise_gamma=one)


def _measured_std(table: ProcessTable, frame_autocovariance: Sequence[float] | np.ndarray | Tensor | None) -> Tensor:
    """√(a² Var(A x) + s²) by timestep, averaged over frames; noise has unit variance in the mean over frames."""
    if table.input_std is not None:
        raise ValueError(
            "normalize_input has nothing to add to this process, which scales its input already; leave it out"
        )
    covariance = _autocovariance(frame_autocovariance, "normalize_input")
    if table.frame_operator is not None:
        covariance = table.frame_operator @ as_matrix(covariance) @ table.frame_operator.T
    signal_variance = mixed_signal_variance(table.frame_gamma, covariance)
    return (table.signal.square() * signal_variance + table.noise.square()).sqrt()


def _autocovariance(given: Sequence[float] | np.ndarray | Tensor | None, option: str) -> Tensor:
    """What was given, (S,) or (S, S) float64; one-line ``ValueError`` where ``option`` needs it and it isn't there."""
    if given is None:
        raise ValueError(f"{option} needs frame_autocovariance, E[x^r x^s] of the data; give it or turn it off")
    covariance = torch.as_tensor(given, dtype=torch.float64).cpu()
    if covariance.ndim not in (1, 2) or covariance.shape[0] != covariance.shape[-1] or covariance.numel() == 0:
        raise ValueError(f"frame_autocovariance has shape {tuple(covariance.shape)}; it must be (S,) by lag, or (S, S)")
    return covariance
