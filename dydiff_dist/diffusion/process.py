"""The diffusion process on tensors: noising, targets, losses and single reverse steps, read off a table of numbers.

``table.py`` has the form that all processes share, ``docs/method.md`` explains it from the start. Tensors are
(B, S, *rest), B samples, S frames, any rest; timesteps are int64 (B,) in 0..N-1, and -1 is clean. Storage may be
float32, bfloat16 or float16, calculated in float32; float64 is calculated in float64. Backends are those of
`dydiff_kernels`: a fused kernel where one runs, the torch specification for float64 and where gradients are wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

import dydiff_kernels as kernels
from dydiff_dist.diffusion.dynamics import along_frames
from dydiff_dist.diffusion.objective import Objective
from dydiff_dist.diffusion.samplers import Step, StepWeights
from dydiff_dist.diffusion.table import ProcessTable
from dydiff_dist.diffusion.workspace import Workspace
from dydiff_kernels import (
    Backend,
    CoefficientTable,
    LatentPosterior,
    Levels,
    NoiseCounter,
    NoisedLatents,
    ReverseStep,
    StepCoefficients,
    TableRows,
)

Noise = Tensor | NoiseCounter
"""White noise like the frames, or the counter that names it."""


class Noised(NamedTuple):
    """What training needs of the forward process, each (B, S, *rest)."""

    z: Tensor
    target: Tensor
    """What the network should say of z."""
    x0: Tensor
    """The clean frames; the latents themselves unless they were drawn."""


@dataclass(frozen=True, eq=False)
class DiffusionProcess:
    """A diffusion process, free of any network. `build_process` and `DiffusionConfig.build` make one."""

    table: ProcessTable
    """Its numbers at every timestep."""
    objective: Objective
    """The training loss."""
    backend: Backend = "auto"
    """Of the kernels."""

    @property
    def num_timesteps(self) -> int:
        """N."""
        return self.table.num_timesteps

    def add_noise(
        self, latents: Tensor | LatentPosterior, timesteps: Tensor, noise: Noise, *, workspace: Workspace | None = None
    ) -> Noised:
        """The forward process: (z, target of the network, clean frames), each (B, S, *rest).

        Args:
            latents: clean frames x in network units, of about unit variance; or the posterior of pre-encoded latents,
                from which x is drawn in the same pass.
            timesteps: (B,) int64 in 0..N-1.
            noise: white noise like x, or a counter (stream ``DIFFUSION``) that names it.
            workspace: of the last call, whose results are then written over.

        Raises:
            ValueError: shapes, dtypes or timesteps that don't fit.

        Examples:
            >>> import torch
            >>> from dydiff_dist.diffusion import build_process
            >>> x = torch.randn(2, 6, 1, 8, 8)
            >>> noised = build_process(prediction="v").add_noise(x, torch.tensor([10, 900]), torch.randn_like(x))
            >>> noised.z.shape == noised.target.shape == x.shape
            True
        """
        clean = None
        if self.table.frame_operator is not None:
            clean = _drawn(latents, self.backend)
            latents = self.relative(clean)
        x = latents.mean if isinstance(latents, LatentPosterior) else latents
        made = {"z": True, "target": not self.table.targets_clean_frames, "x0": x is not latents}
        workspace = workspace or Workspace()
        result = kernels.add_noise(
            latents,
            self._rows_of(timesteps, x),
            noise,
            noise_operator=self._noise_operator_for(x),
            mixes_target=self.table.mixes_target,
            with_target=made["target"],
            with_x0=True,
            out=workspace.take_all(NoisedLatents, made, x),
            backend=self.backend,
        )
        workspace.keep_all(result, made)
        x0 = x if result.x0 is None else result.x0
        return Noised(result.z, x0 if result.target is None else result.target, x0 if clean is None else clean)

    def model_input(self, z: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is shown for z (B, S, *rest) at ``timesteps`` (B,): z, or z over its standard deviation."""
        if self.table.input_std is None:
            return z
        std = self._constant(self.table.input_std, z)[timesteps.to(z.device)]
        return (z.to(std.dtype) / std.view(-1, *[1] * (z.ndim - 1))).to(z.dtype)

    def loss(
        self, model_output: Tensor, target: Tensor, timesteps: Tensor, *, num_history_frames: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error of the network's output, in the space, on the frames and with the weights configured.

        Args:
            model_output: (B, S, *rest).
            target: from ``add_noise``.
            timesteps: as given to ``add_noise``.
            num_history_frames: leading frames, which ``loss_frames="future"`` leaves out.

        Returns:
            (mean over the batch, () ; per sample, (B,)), float32 or float64.

        Raises:
            ValueError: no frame is left to look at.
        """
        self._check_timesteps(timesteps, target)
        per_sample = self.objective(
            model_output,
            target,
            timesteps.to(target.device),
            num_history_frames=num_history_frames,
            backend=self.backend,
        )
        return per_sample.mean(), per_sample

    def prepared(
        self, steps: Sequence[Step], batch: int, device: torch.device
    ) -> tuple[CoefficientTable[StepCoefficients], Tensor]:
        """A sampler's K steps as a table of K rows, for `step`, and their timesteps, (K, B) int64 on ``device``.

        Put there once: a later run of the same steps gets the same tensors, so its recording may read them.
        """
        key = (tuple(steps), batch, device)
        if key not in self._prepared:
            pairs = [(step.now.timestep, step.after.timestep) for step in steps]
            now, after = (self.table.at(torch.tensor(timesteps)) for timesteps in zip(*pairs, strict=True))
            table = CoefficientTable(self.coefficients(now, after, [step.weights for step in steps]), len(steps))
            timesteps = torch.tensor([[timestep] * batch for timestep, _ in pairs]).to(device)
            self._prepared[key] = table, timesteps
        return self._prepared[key]

    @cached_property
    def _prepared(self) -> dict[tuple[object, ...], tuple[CoefficientTable[StepCoefficients], Tensor]]:
        return {}

    def coefficients(self, now: Levels, after: Levels, weights: Sequence[StepWeights]) -> StepCoefficients:
        """Steps as the kernels take them: x̂ = A⁻¹ (p z - s out)/Δ, and the noise that is kept as a share of s ε̂.

        Args:
            now: of each sample's step, from ``table.at``, (B,).
            after: of the timesteps that the steps go to.
            weights: of the sampler, B of them.
        """
        numbers_of_steps = [(w.clean, _combined_weight(w.previous), w.noise, w.sigma) for w in weights]
        clean, previous, kept, sigma = (
            torch.tensor(numbers, dtype=torch.float64, device=now.signal.device)
            for numbers in zip(*numbers_of_steps, strict=True)
        )
        determinant = now.signal * now.target_noise - now.noise * now.target_signal
        own_noise_operator = not self.table.shares_operator
        return StepCoefficients(
            frame_gamma=now.frame_gamma,
            next_frame_gamma=after.frame_gamma,
            noise_gamma=now.noise_gamma if own_noise_operator else None,
            next_noise_gamma=after.noise_gamma if own_noise_operator else None,
            from_z=now.target_noise / determinant,
            from_output=-now.noise / determinant,
            signal=now.signal,
            clean=clean,
            previous=previous,
            kept_noise=kept / now.noise,
            sigma=sigma,
        )

    def step(
        self,
        z: Tensor,
        output: Tensor,
        coefficients: StepCoefficients | TableRows[StepCoefficients],
        weights: StepWeights,
        *,
        previous: Sequence[Tensor] = (),
        noise: Noise | None = None,
        history: Tensor | None = None,
        return_x0: bool = True,
        out: ReverseStep | None = None,
    ) -> ReverseStep:
        """One reverse step of any sampler: (z at t', x̂ or None).

        With x̂ and ε̂ from z at t and the output by the table's formulas, and A', B' the operators at t':

            z' = A' ( clean x̂ + Σ previous_i x̂_i ) + B' ( noise ε̂ + sigma w )

        A noise operator acts on fresh noise alone: ε̂ has its covariance already, and goes on as it is.

        Args:
            z: (B, S, *rest) at t.
            output: the network's output for z.
            coefficients: of t, t' and ``weights``: from ``coefficients``, or ``prepared`` ones at a row.
            weights: of the sampler.
            previous: x̂ of earlier steps, the latest first, as many as ``weights.previous``.
            noise: fresh white noise w, where sigma is not 0.
            history: known clean frames (B, H, *rest), which replace the first H of x̂; ε̂ is then what fits z and them.
            return_x0: whether x̂ is wanted.
            out: memory for the results, which may be that of z and of the one in ``previous``.

        Raises:
            ValueError: shapes or dtypes that don't fit.
        """
        return kernels.reverse_step(
            z,
            output,
            coefficients,
            mixes_output=self.table.mixes_target,
            noise=noise if weights.sigma else None,
            noise_operator=self._noise_operator_for(z),
            history=history,
            x0_prev=_combined(previous, weights.previous),
            return_x0=return_x0,
            out=out,
            backend=self.backend,
        )

    def relative(self, x: Tensor) -> Tensor:
        """T x of frames x (B, S, *rest), what the process is run on; x itself without a frame operator."""
        operator = self.table.frame_operator
        return x if operator is None else along_frames(self._constant(operator, x), x)

    def absolute(self, y: Tensor) -> Tensor:
        """The frames x of ``relative(x)``."""
        operator = self._inverse_operator
        return y if operator is None else along_frames(self._constant(operator, y), y)

    def colored(self, white: Tensor) -> Tensor:
        """ε of white noise (B, S, *rest): L times it, at least in float32; itself without a noise operator."""
        operator = self._noise_operator_for(white)
        if operator is None:
            return white
        return along_frames(operator, white.to(torch.promote_types(white.dtype, torch.float32)))

    def _noise_operator_for(self, x: Tensor) -> Tensor | None:
        operator = self.table.noise_operator
        return None if operator is None else self._constant(operator, x)

    @cached_property
    def _inverse_operator(self) -> Tensor | None:
        operator = self.table.frame_operator
        return None if operator is None else torch.linalg.inv(operator)

    def levels(self, timesteps: Tensor, z: Tensor) -> Levels:
        """The table's rows at ``timesteps`` (B,) for the sequence ``z`` (B, S, *rest), on its device.

        Raises:
            ValueError: shape, dtype, or (on the CPU, where looking doesn't wait) a value out of range.
        """
        self._check_timesteps(timesteps, z)
        return self.table.at(timesteps.to(z.device))

    @cached_property
    def _level_table(self) -> CoefficientTable[Levels]:
        """The process' table as the kernels' one: a row for each timestep."""
        columns = (getattr(self.table, name) for name in Levels._fields)
        return CoefficientTable(Levels(*columns), self.num_timesteps)

    def _rows_of(self, timesteps: Tensor, x: Tensor) -> TableRows[Levels]:
        """As `levels`, with nothing calculated and nothing sent."""
        self._check_timesteps(timesteps, x)
        return self._level_table.at(timesteps.to(x.device))

    def _constant(self, values: Tensor, like: Tensor) -> Tensor:
        """Numbers of the process on the device of ``like``, in the dtype of the calculation; put there once."""
        compute = torch.float64 if like.dtype == torch.float64 else torch.float32
        key = (id(values), like.device, compute)
        if key not in self._constants:
            self._constants[key] = values.to(like.device, compute)
        return self._constants[key]

    @cached_property
    def _constants(self) -> dict[tuple[int, torch.device, torch.dtype], Tensor]:
        return {}

    def _check_timesteps(self, timesteps: Tensor, z: Tensor) -> None:
        if not isinstance(timesteps, Tensor) or timesteps.dtype not in (torch.int64, torch.int32):
            kind = timesteps.dtype if isinstance(timesteps, Tensor) else type(timesteps).__name__
            raise ValueError(f"timesteps are {kind}; give an int64 tensor of shape (B,)")
        if z.ndim < 2 or timesteps.shape != z.shape[:1]:
            raise ValueError(
                f"timesteps have shape {tuple(timesteps.shape)} for frames of shape {tuple(z.shape)}; give (B,) for "
                "frames of shape (B, S, ...)"
            )
        if timesteps.device.type == "cpu" and timesteps.numel():
            smallest, largest = int(timesteps.min()), int(timesteps.max())
            if smallest < 0 or largest >= self.num_timesteps:
                wrong = smallest if smallest < 0 else largest
                raise ValueError(f"timesteps hold {wrong}; they must lie in 0..{self.num_timesteps - 1}")


def _drawn(latents: Tensor | LatentPosterior, backend: Backend) -> Tensor:
    """Clean frames, drawn from the posterior where they are one."""
    if isinstance(latents, Tensor):
        return latents
    stored, compute = latents.mean, torch.promote_types(latents.mean.dtype, torch.float32)
    mean, logvar, noise = stored.to(compute), latents.logvar.to(compute), latents.noise
    if isinstance(noise, NoiseCounter):
        noise = kernels.normal(noise, tuple(mean.shape), device=mean.device, dtype=compute, backend=backend)
    return (latents.scale * (mean + (0.5 * logvar).exp() * noise)).to(stored.dtype)


def _combined_weight(weights: Sequence[float]) -> float:
    """Of the one tensor that `_combined` makes."""
    return weights[0] if len(weights) == 1 else float(len(weights) > 0)


def _combined(previous: Sequence[Tensor], weights: Sequence[float]) -> Tensor | None:
    """Earlier x̂ as the one tensor that a kernel reads."""
    if len(previous) != len(weights):
        raise ValueError(f"previous holds {len(previous)} estimates; the weights are for {len(weights)}, give as many")
    if not weights:
        return None
    if len(weights) == 1:
        return previous[0]
    total = torch.zeros_like(previous[0], dtype=torch.promote_types(previous[0].dtype, torch.float32))
    for weight, x0 in zip(weights, previous, strict=True):
        total.add_(x0, alpha=weight)
    return total
