"""The validation loss at fixed timesteps and noise."""

import numpy as np
import torch

from dydiff_dist.diffusion import build_process
from dydiff_dist.forecasting import Case, Forecaster, SamplingConfig
from dydiff_dist.forecasting.frame_space import PlainFrames
from dydiff_dist.tasks.fixed_loss import NUM_TIMESTEPS, fixed_losses, fixed_timesteps


class Guess(torch.nn.Module):
    """Predicts a constant; notes the timesteps it was asked at."""

    def __init__(self, value: float):
        super().__init__()
        self.value, self.asked = value, []

    def forward(self, z, timesteps, *, history, actions=None):
        self.asked += timesteps.tolist()
        assert torch.equal(history[0], history[-1]) and history.shape[1] == 2
        return torch.full_like(z, self.value)


def forecaster(network, prediction="x0", max_batch=32) -> Forecaster:
    return Forecaster(
        network=network,
        diffusion=build_process(prediction=prediction),
        sampling=SamplingConfig(),
        num_history_frames=2,
        num_future_frames=3,
        frames=PlainFrames(shift=(1.0,), scale=(2.0,)),
        max_batch=max_batch,
    )


def case(number: int) -> Case:
    frames = np.random.default_rng(number).normal(1, 2, (5, 1, 4, 4)).astype(np.float32)
    return Case(number, f"case-{number}", frames[:2], frames[2:], None)


def test_it_is_the_training_loss_in_network_units():
    one = case(3)
    losses = fixed_losses(forecaster(network := Guess(0.25)), one, seed=7)
    x0 = (np.concatenate((one.history, one.truth)) - 1) / 2
    np.testing.assert_allclose(losses, np.full(NUM_TIMESTEPS, ((0.25 - x0) ** 2).mean()), rtol=1e-5)
    assert network.asked == fixed_timesteps(1000).tolist() == [62, 187, 312, 437, 562, 687, 812, 937]


def test_it_is_the_same_every_time_in_any_batch_and_other_for_other_cases_and_seeds():
    def losses(number, seed, max_batch=32):
        return fixed_losses(forecaster(Guess(0.0), "eps", max_batch), case(number), seed)

    first = losses(3, 7)
    assert torch.equal(first, losses(3, 7)) and torch.equal(first, losses(3, 7, max_batch=3))
    assert not torch.equal(first, losses(3, 8)) and not torch.equal(first, losses(4, 7))
    assert len(first.unique()) == NUM_TIMESTEPS, "every timestep has noise of its own"
