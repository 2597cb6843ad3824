"""The loss of validation cases at timesteps and noise that are the same at every validation.

The training loss jumps with the timesteps and noise it happens to draw; this one moves only when the network does.
Letters: K timesteps, S frames.
"""

import torch
from torch import Tensor

from dydiff_dist.forecasting import Forecaster
from dydiff_dist.forecasting.cases import Case, stack_cases
from dydiff_dist.forecasting.forecaster import MEMBER_STRIDE
from dydiff_kernels import NoiseCounter, Stream

NUM_TIMESTEPS = 8
"""K; the middles of as many equal ranges."""
_STEP = 2**32 - 1
"""In the noise's counter; no training comes to this step."""


def fixed_timesteps(num_timesteps: int) -> Tensor:
    """(K,) int64, spread evenly over 0..N-1."""
    return ((torch.arange(NUM_TIMESTEPS) + 0.5) / NUM_TIMESTEPS * num_timesteps).long()


@torch.no_grad()
def fixed_losses(forecaster: Forecaster, case: Case, seed: int) -> Tensor:
    """Losses of one case at every fixed timestep, with its history given, (K,) float32 on the CPU.

    Args:
        forecaster: with the network to judge.
        case: in stored units; as many frames as the forecaster forecasts at once.
        seed: the run's; noise k of case c is that of sample index k · 2³² + c.
    """
    history, actions, case_index = stack_cases([case])
    x0 = forecaster.frames.encode(history, torch.from_numpy(case.truth)[None]).to(forecaster.device)
    if actions is not None:
        actions = forecaster.frames.network_actions(actions, forecaster.num_frames)
    diffusion, dtype = forecaster.diffusion, forecaster.dtype
    losses, num_history = [], forecaster.num_history_frames
    numbers = torch.arange(NUM_TIMESTEPS) * MEMBER_STRIDE + case_index
    for timesteps, index in zip(
        fixed_timesteps(diffusion.num_timesteps).split(forecaster.max_batch),
        numbers.split(forecaster.max_batch),
        strict=True,
    ):
        frames, timesteps = x0.expand(len(index), *x0.shape[1:]), timesteps.to(x0.device)
        z, target, _ = diffusion.add_noise(frames, timesteps, NoiseCounter(seed, index, _STEP, Stream.DIFFUSION))
        given = None if actions is None else actions.to(x0.device, dtype).expand(len(index), *actions.shape[1:])
        output = forecaster.network(
            diffusion.model_input(z, timesteps).to(dtype),
            timesteps,
            history=frames[:, :num_history].to(dtype),
            actions=given,
        )
        losses.append(diffusion.loss(output.float(), target, timesteps, num_history_frames=num_history)[1].cpu())
    return torch.cat(losses)
