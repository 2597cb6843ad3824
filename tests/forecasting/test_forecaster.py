"""The Forecaster: reproducible members, units, conditions, rollout, errors."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import Recorder

from dydiff_dist.diffusion import build_process, sample, start_noise, timestep_grid
from dydiff_dist.diffusion.replay import Replay
from dydiff_dist.forecasting import Forecaster, SamplingConfig, load_forecaster
from dydiff_dist.forecasting.forecaster import MEMBER_STRIDE
from dydiff_dist.forecasting.frame_space import PlainFrames
from dydiff_kernels import NoiseCounter, Stream

NUM_HISTORY, NUM_FUTURE, FRAME_CHW = 2, 3, (1, 4, 6)


class ShrinkingNetwork(torch.nn.Module):
    """Predicts half of z plus the last given frame: elementwise, so exact whatever the batch."""

    def __init__(self):
        super().__init__()
        self.actions_seen: list[torch.Tensor] = []

    def forward(self, z, timesteps, *, history, actions=None):
        if actions is not None:
            self.actions_seen.append(actions.clone())
        return 0.5 * z + history[:, -1:]


def _forecaster(**changes) -> Forecaster:
    forecaster = Forecaster(
        network=ShrinkingNetwork(),
        diffusion=build_process(num_timesteps=50, prediction="x0"),
        sampling=SamplingConfig(sampler="ddim", num_steps=5, eta=0.5, spacing="uniform"),
        num_history_frames=NUM_HISTORY,
        num_future_frames=NUM_FUTURE,
        frames=PlainFrames(shift=(10.0,), scale=(4.0,)),
    )
    return replace(forecaster, **changes)


def _history(num_cases: int, seed: int = 0) -> torch.Tensor:
    return 10 + 4 * torch.randn(num_cases, NUM_HISTORY, *FRAME_CHW, generator=torch.Generator().manual_seed(seed))


def test_a_member_is_the_sampler_run_with_its_own_counter() -> None:
    forecaster = _forecaster()
    history = _history(2)
    futures = forecaster.forecast(history, case_index=[17, 40], num_members=4, seed=9)
    assert futures.shape == (2, 4, NUM_FUTURE, *FRAME_CHW)
    index = torch.tensor([3 * MEMBER_STRIDE + 17])
    grid = timestep_grid(forecaster.diffusion.table, 5)
    shape = (1, NUM_HISTORY + NUM_FUTURE, *FRAME_CHW)
    given = (history[:1] - 10) / 4
    member = sample(
        forecaster.diffusion,
        lambda z, t: forecaster.network(z, t, history=given),
        start=start_noise(forecaster.diffusion, shape, grid[0], NoiseCounter(9, index, 0, Stream.SAMPLER_START)),
        timesteps=grid,
        eta=0.5,
        noise=NoiseCounter(9, index, 0, Stream.SAMPLER_ETA),
        history=given,
    )
    torch.testing.assert_close(futures[0, 3], member[0, NUM_HISTORY:] * 4 + 10, rtol=0, atol=0)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(5)), st.integers(1, 7), st.integers(1, 20), st.booleans())
def test_a_member_is_the_same_in_any_company(order, num_members: int, max_batch: int, guided: bool) -> None:
    sampling = SamplingConfig(sampler="ddim", num_steps=3, eta=1.0, guidance_weight=2.0 if guided else 1.0)
    history = _history(5)
    wanted = _forecaster(sampling=sampling).forecast(history, case_index=range(100, 105), num_members=7, seed=1)
    forecaster = _forecaster(sampling=sampling, max_batch=max_batch)
    order = list(order)[:3]
    got = forecaster.forecast(
        history[order], case_index=[100 + case for case in order], num_members=num_members, seed=1
    )
    # the network is elementwise, so nothing depends on the batch: equal bit for bit
    torch.testing.assert_close(got, wanted[order, :num_members], rtol=0, atol=0)


def test_members_cases_and_seeds_differ() -> None:
    history = _history(1).expand(2, -1, -1, -1, -1)
    first = _forecaster().forecast(history, num_members=3, seed=0)
    second = _forecaster().forecast(history, num_members=3, seed=1)
    drawn = torch.cat((first.flatten(0, 1), second.flatten(0, 1))).flatten(1)
    assert torch.pdist(drawn).min() > 1e-2


def test_a_real_network_agrees_across_batches_to_rounding(flow_model) -> None:
    one, many = load_forecaster(flow_model, max_batch=1), load_forecaster(flow_model, max_batch=6)
    history = torch.randn(3, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    # float32 sums of a few hundred terms in another order, over three steps
    torch.testing.assert_close(
        one.forecast(history, num_members=2), many.forecast(history, num_members=2), rtol=1e-4, atol=1e-4
    )


def test_shift_and_scale_are_taken_off_and_put_back() -> None:
    history = _history(1)
    normalized = _forecaster().forecast_normalized((history - 10) / 4, num_members=2)
    torch.testing.assert_close(_forecaster().forecast(history, num_members=2), normalized * 4 + 10, rtol=0, atol=0)


def test_network_frames_are_those_that_the_network_is_given() -> None:
    plain, scaled = PlainFrames((10.0,), (4.0,)), PlainFrames((0.0,), (1.0,), "mean")
    history, future = _history(2), _history(2, seed=1)
    frames = plain.encode(history, future[:, :1])
    assert torch.equal(frames, (torch.cat((history, future[:, :1]), dim=1) - 10) / 4)
    actions = torch.zeros(2, 3, 1)
    assert plain.network_actions(actions, 3) is actions
    unit = history.abs().mean(dim=(1, 3, 4), keepdim=True)
    torch.testing.assert_close(scaled.encode(history, future)[:, NUM_HISTORY:], future / unit)
    members = torch.stack((future, future), dim=1)
    torch.testing.assert_close(scaled.decode(members, history, scaled.encode(history)), members * unit[:, None])


def test_integer_history_is_taken_as_it_is() -> None:
    history = torch.randint(0, 256, (1, NUM_HISTORY, *FRAME_CHW), dtype=torch.uint8)
    wanted = _forecaster().forecast(history.float())
    torch.testing.assert_close(_forecaster().forecast(history), wanted, rtol=0, atol=0)


def test_a_rollout_goes_on_from_its_own_frames_with_new_noise() -> None:
    forecaster, history = _forecaster(), _history(2)
    long = forecaster.forecast(history, num_members=1, num_frames=7, seed=4)
    assert long.shape == (2, 1, 7, *FRAME_CHW)
    torch.testing.assert_close(long[:, :, :3], forecaster.forecast(history, num_members=1, seed=4), rtol=0, atol=0)
    again = forecaster.forecast(long[:, 0, 1:3], num_members=1, seed=4)
    assert (again[:, 0] - long[:, 0, 3:6]).abs().max() > 1e-2  # the same history, but the second window's noise


def test_the_unconditional_branch_sees_zeros_as_history() -> None:
    def window(history: torch.Tensor, weight: float) -> torch.Tensor:
        forecaster = _forecaster(sampling=SamplingConfig(num_steps=4, guidance_weight=weight, clamp_history=False))
        return forecaster.sample_window(history, None, torch.tensor([3]), seed=1, window=0)

    history = torch.ones(1, NUM_HISTORY, *FRAME_CHW)
    assert torch.equal(window(history, 0.0), window(torch.zeros_like(history), 1.0))
    assert not torch.equal(window(history, 0.0), window(history, 1.0))


def recorded_and_plain(sampler: str, **changes) -> tuple[Forecaster, Forecaster]:
    """Forecasters with everything that a call draws anew: start, shifts, noise."""
    sampling = SamplingConfig(sampler=sampler, num_steps=4, guidance_weight=2.0, random_shifts=True)
    recorded, plain = (_forecaster(sampling=sampling, knows_shifts=True, **changes) for _ in range(2))
    plain.__dict__["_recorded"] = plain._run_sampler
    return recorded, plain


def assert_windows_are_equal(recorded: Forecaster, plain: Forecaster) -> None:
    """Bit for bit, in rollouts of two windows under other seeds and of other cases."""
    drawn = []
    for seed in (3, 4, 2**63):
        history, given = _history(2, seed % 7), dict(case_index=[seed % 100, 9], num_members=2, seed=seed)
        drawn.append(recorded.forecast(history, num_frames=2 * NUM_FUTURE, **given))
        assert torch.equal(drawn[-1], plain.forecast(history, num_frames=2 * NUM_FUTURE, **given))
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpmpp_2m"])
def test_recorded_windows_are_those_that_run_by_themselves(sampler: str) -> None:
    process = build_process(num_timesteps=50, prediction="x0", backend="reference")
    recorded, plain = recorded_and_plain(sampler, diffusion=process)
    recorder = Recorder()
    recorded.__dict__["_recorded"] = Replay(recorded._run_sampler, recorder)
    assert_windows_are_equal(recorded, plain)
    assert (recorder.recorded, recorder.played) == (1, 5)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpmpp_2m"])
def test_cuda_graphs_give_the_windows_that_run_by_themselves(sampler: str, caplog) -> None:
    assert_windows_are_equal(*recorded_and_plain(sampler, device="cuda"))
    assert "could not be recorded" not in caplog.text


def test_each_window_of_a_rollout_sees_its_own_actions() -> None:
    forecaster = _forecaster(num_action_channels=1, sampling=SamplingConfig(num_steps=1))
    actions = torch.arange(9.0).reshape(1, 9, 1)
    forecaster.forecast(_history(1), actions=actions, num_members=1, num_frames=7)
    windows = [seen.flatten().tolist() for seen in forecaster.network.actions_seen]
    # frame 0 of a window has no action that leads to it; frames past the seventh are cut off and have none
    assert windows[:: len(windows) // 3] == [[0, 1, 2, 3, 4], [0, 4, 5, 6, 7], [0, 7, 8, 0, 0]]


def test_clamped_history_reaches_the_sampler() -> None:
    history = _history(1)
    clamped = _forecaster(sampling=SamplingConfig(num_steps=4)).forecast(history)
    free = _forecaster(sampling=SamplingConfig(num_steps=4, clamp_history=False)).forecast(history)
    assert (clamped - free).abs().max() > 1e-3


def _raises(message: str):
    return pytest.raises(ValueError, match=re.escape(message))


def test_errors_name_what_is_wrong() -> None:
    forecaster, history = _forecaster(), _history(2)
    with _raises("history has shape (2, 1, 1, 4, 6), the model takes (B, 2, 1, H, W)"):
        forecaster.forecast(history[:, :1])
    with _raises("history holds NaN or infinite values"):
        forecaster.forecast(history * float("nan"))
    with _raises("num_members is 0; it must lie in 1..16777215"):
        forecaster.forecast(history, num_members=0)
    with _raises("num_frames is 0; ask for at least 1 frame"):
        forecaster.forecast(history, num_frames=0)
    with _raises("case_index has shape (3,), the history holds 2 cases"):
        forecaster.forecast(history, case_index=[1, 2, 3])
    with _raises("case_index holds -1..4; cases are numbered 0..2**32 - 1"):
        forecaster.forecast(history, case_index=[-1, 4])
    with _raises("the model takes 0 action channels, actions were given"):
        forecaster.forecast(history, actions=torch.zeros(2, 5, 4))
    with _raises("actions have shape (2, 5, 4); 4 forecast frames need (2, 6, 4) or longer"):
        _forecaster(num_action_channels=4).forecast(history, actions=torch.zeros(2, 5, 4), num_frames=4)


def test_sampling_config_refuses_eta_without_ddim() -> None:
    with _raises("eta is 0.5 with sampler 'dpmpp_2m'; only 'ddim' takes it ('ancestral' is eta 1); set it to 0"):
        SamplingConfig(sampler="dpmpp_2m", eta=0.5)


def test_sampling_config_refuses_what_the_process_cannot_do() -> None:
    table = build_process(num_timesteps=20).table
    SamplingConfig().check(table, num_frames=6)
    with _raises("sampling: num_steps is 21; it must lie in 1..20, the number of timesteps"):
        SamplingConfig(num_steps=21).check(table)
    separate = build_process(process="dydiff_independent").table
    SamplingConfig(sampler="ddim").check(separate)
    with _raises("sampling: sampler 'heun' combines estimates of several timesteps"):
        SamplingConfig(sampler="heun").check(separate)
    coarse, trailing = (
        build_process(prediction="eps", gamma_ratio=1.0).table,
        SamplingConfig(spacing="trailing", num_steps=2),
    )
    trailing.check(coarse)
    with _raises("sampling: a step from timestep 999 to"):
        trailing.check(coarse, num_frames=6)
