"""Sampling with the view moved in every step: exact shifts, and what they do to a network with a fixed grid."""

import re
from types import SimpleNamespace

import pytest
import torch

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.diffusion import build_process
from dydiff_dist.forecasting import Forecaster, SamplingConfig
from dydiff_dist.forecasting.frame_space import LatentFrames, PlainFrames
from dydiff_dist.forecasting.moving_view import MovingView, draw_origins, number_steps
from dydiff_kernels import NoiseCounter, Stream, uniform

H, W = 6, 10
GRID = [40, 20, 3]


class PointwiseNetwork(torch.nn.Module):
    """Treats every pixel alike."""

    def forward(self, z, timesteps, *, history, actions=None):
        return 0.5 * z + 0.25 * history[:, -1:]


class EdgeNetwork(torch.nn.Module):
    """Predicts still air, and errs in the first row and column of what it sees."""

    def forward(self, z, timesteps, *, history, actions=None):
        output = torch.zeros_like(z)
        output[..., 0, :] += 1
        output[..., 0] += 2
        return output


def forecaster(network: torch.nn.Module, *, knows_shifts: bool = True, max_batch: int = 32, **sampling) -> Forecaster:
    return Forecaster(
        network=network,
        diffusion=build_process(num_timesteps=50, prediction="x0"),
        sampling=SamplingConfig(spacing="uniform", **{"num_steps": 3, **sampling}),
        num_history_frames=2,
        num_future_frames=3,
        frames=PlainFrames(shift=(0.0,), scale=(1.0,)),
        knows_shifts=knows_shifts,
        max_batch=max_batch,
    )


def history(num_cases: int = 2) -> torch.Tensor:
    return torch.randn(num_cases, 2, 1, H, W, generator=torch.Generator().manual_seed(0))


def test_the_view_is_a_shift_of_each_sample_of_its_own_and_comes_back() -> None:
    counter = NoiseCounter(3, torch.arange(40), 0, Stream.SAMPLER_SHIFT)
    view = MovingView.of(draw_origins(counter, len(GRID), H, W), number_steps(GRID, 50), H, W)
    fields = torch.randn(40, 5, 2, H, W, generator=torch.Generator().manual_seed(1))
    draws = uniform(counter, 2 * len(GRID)).view(40, len(GRID), 2)
    for step, timestep in enumerate(GRID):
        timesteps = torch.full((40,), timestep)
        shown = view.show(fields, timesteps)
        for sample in range(40):
            down, right = int(draws[sample, step, 0] * H) % H, int(draws[sample, step, 1] * W) % W
            torch.testing.assert_close(shown[sample], fields[sample].roll((-down, -right), (-2, -1)), rtol=0, atol=0)
        torch.testing.assert_close(view.put_back(shown, timesteps), fields, rtol=0, atol=0)
    assert len({tuple(pixels[:1].tolist()) for pixels in view.order.flatten(0, 1)}) > 30  # of 60 origins, 120 draws


@pytest.mark.parametrize("guidance_weight", [1.0, 2.0])
def test_a_network_without_a_grid_forecasts_the_same(guidance_weight: float) -> None:
    moved = forecaster(PointwiseNetwork(), guidance_weight=guidance_weight).forecast(history())
    fixed = forecaster(PointwiseNetwork(), guidance_weight=guidance_weight, random_shifts=False).forecast(history())
    torch.testing.assert_close(moved, fixed, rtol=0, atol=0)


def test_edges_lie_elsewhere_for_each_member() -> None:
    edges = torch.zeros(H, W)
    edges[0] += 1
    edges[:, 0] += 2
    shifts = [edges.roll((down, right), (0, 1)) for down in range(H) for right in range(W)]
    futures = forecaster(EdgeNetwork(), num_steps=1).forecast(history(1), num_members=24)[0, :, 0, 0]
    seen = [next(i for i, shift in enumerate(shifts) if torch.equal(shift, future)) for future in futures]
    assert len(set(seen)) > 12
    fixed = forecaster(EdgeNetwork(), num_steps=1, random_shifts=False).forecast(history(1), num_members=2)
    torch.testing.assert_close(fixed, edges.expand_as(fixed), rtol=0, atol=0)


def test_a_member_has_the_same_view_in_any_batch() -> None:
    together = forecaster(EdgeNetwork()).forecast(history(3), case_index=[5, 6, 7], num_members=4)
    alone = forecaster(EdgeNetwork(), max_batch=1).forecast(history(3)[1:2], case_index=[6], num_members=4)
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=0)


def test_windows_of_a_rollout_have_views_of_their_own() -> None:
    futures = forecaster(EdgeNetwork(), num_steps=1).forecast(history(1), num_members=8, num_frames=6)[0]
    assert not torch.equal(futures[:, 0], futures[:, 3])


def test_shifts_need_a_network_that_was_trained_on_them() -> None:
    with pytest.raises(ValueError, match=re.escape("trained without data.augmentation.periodic_shift; leave it out")):
        forecaster(EdgeNetwork(), knows_shifts=False, random_shifts=True)
    first = forecaster(EdgeNetwork(), knows_shifts=False, num_steps=1).forecast(history(1), num_members=2)
    assert bool((first[..., 0] >= 2).all())  # null: not moved


@pytest.mark.parametrize(
    ("trained", "periodic", "knows"),
    [(True, None, True), (False, None, False), (True, True, True), (True, False, False)],
)
def test_latents_can_be_shifted_where_their_autoencoder_wraps_around(trained, periodic, knows) -> None:
    data = DataConfig(train="x", num_history_frames=1, num_future_frames=1, augmentation={"periodic_shift": trained})
    frames = PlainFrames((0.0,), (1.0,))
    if periodic is not None:
        description = FrameSchema(num_frames=2, shape=(1, H, W), dtype="float32")
        facts = {"frames": description, "latent_channels": 1, "temporal_ratio": 1, "periodic": periodic}
        frames = LatentFrames(SimpleNamespace(description=SimpleNamespace(**facts)))
    trained = Forecaster.of_weights(
        PointwiseNetwork(),
        {},
        data=data,
        frames=frames,
        diffusion=build_process(num_timesteps=50),
        sampling=SamplingConfig(),
    )
    assert trained.knows_shifts == knows
