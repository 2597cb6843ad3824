"""Ensemble forecasts from a trained network.

Letters: B cases, M members, S_h history frames, S_f future frames, S = S_h + S_f, C channels, H W height and width,
A action channels; units as in ``frame_space.py``. Where the network forecasts latents, what it sees counts latent
frames and their channels and pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dydiff_dist.data.config import DataConfig
from dydiff_dist.diffusion import DiffusionProcess, guided, rollout, sample, start_noise, timestep_grid
from dydiff_dist.diffusion.replay import Replay
from dydiff_dist.diffusion.sampling import Denoise, plan_steps
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.frame_space import FrameSpace
from dydiff_dist.forecasting.moving_view import MovingView, draw_origins, number_steps
from dydiff_dist.models import Denoiser
from dydiff_kernels import NoiseCounter, Stream

MEMBER_STRIDE = 2**32
"""Sample index of member m of case c: m · 2³² + c (agreement 2 of docs/agreements.md)."""
MAX_MEMBERS = 2**24


@dataclass(frozen=True, kw_only=True)
class Forecaster:
    """A trained network with its process, ready to forecast; `Forecaster.of_weights` makes one of a run's parts.

    Noise comes from a counter named by (seed, case, member), so a member is the same whatever else is forecast with it,
    on any number of processes and in any batch (to the last digits that the network's own arithmetic leaves to the
    batch size).
    """

    network: Denoiser
    diffusion: DiffusionProcess
    sampling: SamplingConfig
    frames: FrameSpace
    """What the network's frames are."""
    num_history_frames: int
    """S_h, as the network counts them."""
    num_future_frames: int
    """S_f, network frames forecast at once; longer forecasts are rolled out."""
    num_action_channels: int = 0
    """A, as the network takes them; 0 where the data have no actions."""
    knows_shifts: bool = False
    """Whether it was trained on random periodic shifts, which ``sampling.random_shifts`` needs."""
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    """Storage of what the network reads and of its weights; sampling itself is done in float32."""
    max_batch: int = 32
    """Members that pass through the network together; bounds memory."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` where shifts are asked of a network that never saw any, or sampling doesn't fit the
        process."""
        if self.sampling.random_shifts and not self.knows_shifts:
            raise ValueError(
                "sampling.random_shifts is on, but the network was trained without data.augmentation.periodic_shift; "
                "leave it out"
            )
        self.sampling.check(self.diffusion.table, self.num_frames)

    @classmethod
    def of_weights(
        cls,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        *,
        data: DataConfig,
        frames: FrameSpace,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **fields: Any,
    ) -> "Forecaster":
        """A forecaster from a run's parts.

        Args:
            network: a `Denoiser`; it takes the weights and is moved.
            weights: its state, by name.
            data: the run's, for the window and whether it was trained on shifts.
            frames: what the network's frames are.
            device: where it is to run.
            dtype: of its weights and activations.
            fields: of `Forecaster`, the rest.

        Raises:
            RuntimeError: weights of another network, as `torch.nn.Module.load_state_dict` says it.
        """
        network.load_state_dict(weights)
        network = network.eval().requires_grad_(False).to(device, dtype)
        return cls.around(network, data=data, frames=frames, device=device, dtype=dtype, **fields)

    @classmethod
    def around(cls, network: Any, *, data: DataConfig, frames: FrameSpace, **fields: Any) -> "Forecaster":
        """A forecaster with a network as it is, a `Denoiser` or an engine that holds one; else as `of_weights`."""
        return cls(
            network=network,
            frames=frames,
            num_history_frames=data.num_history_frames,
            num_future_frames=data.num_future_frames,
            knows_shifts=data.augmentation.periodic_shift and frames.follows_shifts,
            **fields,
        )

    def forecast(
        self,
        history: Tensor,
        *,
        actions: Tensor | None = None,
        case_index: Tensor | Sequence[int] | None = None,
        num_members: int = 8,
        seed: int = 0,
        num_frames: int | None = None,
    ) -> Tensor:
        """An ensemble of futures for each case, in stored units.

        Args:
            history: (B, S_h, C, H, W) in stored units, any real dtype.
            actions: (B, S, A) float32, the action at frame s leads to frame s; where the data have actions.
            case_index: (B,) int64 in 0..2³²-1, names the cases' noise; None numbers them from 0.
            num_members: M.
            seed: the key of all noise, 0 ≤ seed < 2⁶⁴.
            num_frames: frames to forecast; None is S_f, more are rolled out window by window.

        Returns:
            (B, M, num_frames, C, H, W) float32 on the CPU, within the bounds that the data's schema states.

        Raises:
            ValueError: shapes, counts or indices that don't fit, or a history that is not finite.
        """
        frames = self.frames
        _check_frames(history, frames.stored_frames(self.num_history_frames), frames.stored_channels)
        encoded = frames.encode(history)
        num_future = self.num_future_frames if num_frames is None else frames.future_frames(num_frames)
        if actions is not None:
            actions = frames.network_actions(actions, self.num_history_frames + num_future)
        futures = self.forecast_normalized(
            encoded,
            actions=actions,
            case_index=case_index,
            num_members=num_members,
            seed=seed,
            num_frames=num_future,
        )
        return frames.within_bounds(frames.decode(futures, history, encoded)[:, :, :num_frames])

    @torch.no_grad()
    def forecast_normalized(
        self,
        history: Tensor,
        *,
        actions: Tensor | None = None,
        case_index: Tensor | Sequence[int] | None = None,
        num_members: int = 8,
        seed: int = 0,
        num_frames: int | None = None,
    ) -> Tensor:
        """As ``forecast``, with history and result in network frames and the result on the forecaster's device."""
        _check_frames(history, self.num_history_frames, self.frames.network_channels)
        num_cases = history.shape[0]
        case_index = _checked_cases(case_index, num_cases)
        num_frames = self.num_future_frames if num_frames is None else num_frames
        self._check_request(num_members, num_frames, actions, num_cases)
        members = torch.arange(num_members)
        sample_index = (members * MEMBER_STRIDE + case_index[:, None]).flatten()
        case_of_sample = torch.arange(num_cases).repeat_interleave(num_members)
        futures = []
        for start in range(0, len(sample_index), self.max_batch):
            cases = case_of_sample[start : start + self.max_batch]
            futures.append(
                self._forecast_samples(
                    history[cases].to(self.device, torch.float32),
                    None if actions is None else actions[cases].to(self.device, torch.float32),
                    sample_index[start : start + self.max_batch],
                    seed,
                    num_frames,
                )
            )
        return torch.cat(futures).unflatten(0, (num_cases, num_members))

    def _forecast_samples(
        self, history: Tensor, actions: Tensor | None, sample_index: Tensor, seed: int, num_frames: int
    ) -> Tensor:
        """One future for each sample, (B, num_frames, C, H, W), window after window."""

        def forecast_window(history: Tensor, window: int) -> Tensor:
            first = window * self.num_future_frames
            of_window = None if actions is None else _window_actions(actions, first, self.num_frames)
            return self.sample_window(history, of_window, sample_index, seed, window)

        return rollout(forecast_window, history, num_frames)

    def sample_window(
        self, history: Tensor, actions: Tensor | None, sample_index: Tensor, seed: int, window: int
    ) -> Tensor:
        """Samples one window, differentiable in the network's weights where gradients are enabled.

        Args:
            history: (B, S_h, C, H, W) float32 network frames on the forecaster's device.
            actions: (B, S, A) float32 there, or None.
            sample_index: (B,) int64, names each sample's noise.
            seed: the key of all noise.
            window: names the window's noise, from 0.

        Returns:
            (B, S, C, H, W) float32 network frames, history first.
        """
        sampling, diffusion = self.sampling, self.diffusion
        steps = plan_steps(diffusion.table, self._grid, sampler=sampling.sampler, eta=sampling.eta)
        sample_index = sample_index.to(self.device)

        def counter(step: int, stream: Stream) -> NoiseCounter:
            return NoiseCounter(seed, sample_index, step, stream)

        shape = (history.shape[0], self.num_frames, *history.shape[2:])
        named = counter(window, Stream.SAMPLER_START)
        drawn = {"start": start_noise(diffusion, shape, self._grid[0], named, device=self.device)}
        if self.moves_view:
            shifts = counter(window, Stream.SAMPLER_SHIFT)
            drawn["origins"] = draw_origins(shifts, len(steps), shape[-2], shape[-1], self.device)
        if any(step.weights.sigma for step in steps):
            noise = counter(window * len(steps), Stream.SAMPLER_ETA)
            drawn |= {"sample_index": sample_index, "noise_words": noise.words()}
        run = self._run_sampler if torch.is_grad_enabled() else self._recorded
        return run(history=history, actions=actions, **drawn)

    @cached_property
    def _recorded(self) -> Replay:
        """`_run_sampler`, which GPUs record where shapes come again."""
        return Replay(self._run_sampler)

    @cached_property
    def _grid(self) -> list[int]:
        """The sampler's timesteps, descending."""
        return timestep_grid(self.diffusion.table, self.sampling.num_steps, self.sampling.spacing)

    @cached_property
    def _step_at(self) -> Tensor:
        """Put on the device once, as a recording needs it."""
        return number_steps(self._grid, self.diffusion.num_timesteps, self.device)

    def _run_sampler(
        self,
        start: Tensor,
        history: Tensor,
        actions: Tensor | None = None,
        origins: Tensor | None = None,
        sample_index: Tensor | None = None,
        noise_words: Tensor | None = None,
    ) -> Tensor:
        """One window from what is random in it: where it starts, shifts, and the name of the noise of η."""
        noise, view = None, None
        if sample_index is not None and noise_words is not None:
            noise = NoiseCounter(noise_words[0], sample_index, noise_words[1], Stream.SAMPLER_ETA)
        if origins is not None:
            view = MovingView.of(origins, self._step_at, start.shape[-2], start.shape[-1])
        return sample(
            self.diffusion,
            self._denoise(history, actions, view),
            start=start,
            timesteps=self._grid,
            sampler=self.sampling.sampler,
            eta=self.sampling.eta,
            noise=noise,
            history=history if self.sampling.clamp_history else None,
        )

    def _denoise(self, history: Tensor, actions: Tensor | None, view: MovingView | None) -> Denoise:
        """The network with its conditions, guided where asked: the unconditional branch sees zeros as history."""
        actions = None if actions is None else actions.to(self.dtype)

        def given(condition: Tensor) -> Denoise:
            condition = condition.to(self.dtype)

            def denoise(z: Tensor, timesteps: Tensor) -> Tensor:
                if view is None:
                    return self._run_network(z, timesteps, condition, actions)
                shown = view.show(z, timesteps), timesteps, view.show(condition, timesteps)
                return view.put_back(self._run_network(*shown, actions), timesteps)

            return denoise

        if self.sampling.guidance_weight == 1:
            return given(history)
        return guided(given(history), given(torch.zeros_like(history)), self.sampling.guidance_weight)

    def _run_network(self, z: Tensor, timesteps: Tensor, history: Tensor, actions: Tensor | None) -> Tensor:
        """The network's output as float32; history and actions come as ``dtype``, which it reads."""
        return self.network(z.to(self.dtype), timesteps, history=history, actions=actions).float()

    @property
    def moves_view(self) -> bool:
        """Whether each step shows the network the frames from another origin, so that its patches lie elsewhere."""
        return self.knows_shifts and self.sampling.random_shifts is not False

    @property
    def num_frames(self) -> int:
        """S, frames of one window."""
        return self.num_history_frames + self.num_future_frames

    def _check_request(self, num_members: int, num_frames: int, actions: Tensor | None, num_cases: int) -> None:
        if not 1 <= num_members < MAX_MEMBERS:
            raise ValueError(f"num_members is {num_members}; it must lie in 1..{MAX_MEMBERS - 1}")
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; ask for at least 1 frame")
        if (actions is None) != (self.num_action_channels == 0):
            raise ValueError(
                f"the model takes {self.num_action_channels} action channels, "
                f"{'none were' if actions is None else 'actions were'} given"
            )
        if actions is None:
            return
        needed = self.num_history_frames + num_frames
        expected = (num_cases, needed, self.num_action_channels)
        if actions.ndim != 3 or actions.shape[1] < needed or (actions.shape[0], actions.shape[2]) != expected[::2]:
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}; {num_frames} forecast frames need {expected} or longer"
            )


def _check_frames(history: Tensor, num_frames: int, num_channels: int) -> None:
    if history.ndim != 5 or tuple(history.shape[1:3]) != (num_frames, num_channels):
        wanted = f"(B, {num_frames}, {num_channels}, H, W)"
        raise ValueError(f"history has shape {tuple(history.shape)}, the model takes {wanted}")
    if history.is_floating_point() and not bool(torch.isfinite(history).all()):
        raise ValueError("history holds NaN or infinite values; leave such cases out")


def _checked_cases(case_index: Tensor | Sequence[int] | None, num_cases: int) -> Tensor:
    """(B,) int64 on the CPU."""
    index = torch.arange(num_cases) if case_index is None else torch.as_tensor(case_index, dtype=torch.int64).cpu()
    if index.shape != (num_cases,):
        raise ValueError(f"case_index has shape {tuple(index.shape)}, the history holds {num_cases} cases")
    if num_cases and not 0 <= int(index.min()) <= int(index.max()) < MEMBER_STRIDE:
        raise ValueError(f"case_index holds {int(index.min())}..{int(index.max())}; cases are numbered 0..2**32 - 1")
    return index


def _window_actions(actions: Tensor, first: int, num_frames: int) -> Tensor:
    """Actions of one window. None leads to its first frame, and none to frames past the last wanted, cut off later."""
    of_window = actions[:, first : first + num_frames]
    return nn.functional.pad(of_window[:, 1:], (0, 0, 1, num_frames - of_window.shape[1]))
