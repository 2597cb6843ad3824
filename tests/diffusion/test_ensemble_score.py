"""The almost fair CRPS as a loss: its formula, what it looks at, and its gradient through whole samplers."""

import math

import numpy as np
import pytest
import scoringrules
import torch

from dydiff_dist.diffusion import build_process, sample, start_noise, timestep_grid
from dydiff_dist.diffusion.ensemble_score import EnsembleScoreConfig, almost_fair_crps, ensemble_scores
from dydiff_dist.models import InputSizes, VideoTransformerConfig
from dydiff_dist.strict_config import describe_error

B, M, S, C, H, W = 2, 3, 2, 1, 8, 6


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def direct_crps(x: np.ndarray, y: float, fair: bool) -> float:
    """E|X - y| - E|X - X'|/2 of a few numbers, written out."""
    pairs = [abs(one - other) for i, one in enumerate(x) for j, other in enumerate(x) if i != j]
    return np.mean(np.abs(x - y)) - sum(pairs) / (2 * len(x) * (len(x) - 1 if fair else len(x)))


@pytest.mark.parametrize("num_members", [2, 3, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.95, 1.0])
def test_it_is_the_mixture_of_both_scores(num_members, alpha):
    members, truth = draw(B, num_members, 4), draw(B, 4, seed=1)
    found = almost_fair_crps(members, truth, alpha)
    for b in range(B):
        for i in range(4):
            x, y = members[b, :, i].numpy(), float(truth[b, i])
            expected = (1 - alpha) * direct_crps(x, y, fair=False) + alpha * direct_crps(x, y, fair=True)
            assert float(found[b, i]) == pytest.approx(expected, abs=1e-14)
    estimators = {"nrg": 1 - alpha, "fair": alpha}
    library = sum(
        share * scoringrules.crps_ensemble(truth.numpy(), members.numpy(), m_axis=1, estimator=name)
        for name, share in estimators.items()
    )
    np.testing.assert_allclose(found, library, atol=1e-14)


def test_the_fair_score_alone_lets_a_member_go():
    """With one of two members on the truth the other one is free, which the share of the other score ends."""
    truth = torch.zeros(1, 1)
    members = torch.tensor([[[0.0], [7.0]]], requires_grad=True)
    for alpha, slope in ((1.0, 0.0), (0.9, 0.025)):
        (gradient,) = torch.autograd.grad(almost_fair_crps(members, truth, alpha).sum(), members)
        assert float(gradient[0, 1]) == pytest.approx(slope, abs=1e-7)


def test_scores_are_of_pixels_blocks_and_coefficients():
    members, truth = draw(B, M, S, C, H, W), draw(B, S, C, H, W, seed=1)
    found = ensemble_scores(members, truth, 0.5, {"pool_1": 1.0, "pool_4": 1.0, "spectral": 1.0})

    def blocks(x):
        cut = x.numpy()[..., :4]  # the last two columns are no whole block
        return torch.from_numpy(cut.reshape(*x.shape[:-2], 2, 4, 1, 4).mean(axis=(-3, -1)))

    def coefficients(x):
        transformed = np.fft.rfft2(x.numpy()) / math.sqrt(H * W)
        return torch.from_numpy(np.stack((transformed.real, transformed.imag)))

    expected = {
        "pool_1": almost_fair_crps(members, truth, 0.5),
        "pool_4": almost_fair_crps(blocks(members), blocks(truth), 0.5),
        "spectral": sum(
            almost_fair_crps(x, y, 0.5) / 2 for x, y in zip(coefficients(members), coefficients(truth), strict=True)
        ),
    }
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score.flatten(1).mean(dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("row", "sampler", "num_steps"),
    [("dydiff", "ancestral", 1), ("dydiff", "ancestral", 4), ("dydiff", "dpmpp_2m", 4), ("flow_matching", "heun", 2)],
)
def test_the_gradient_goes_through_every_step(row, sampler, num_steps):
    """Of a network's weights, against central differences in float64; and float32 gives the same gradient."""
    config = VideoTransformerConfig(width=8, depth=1, num_heads=1, patch_size=4, patch_skip=True)
    torch.manual_seed(0)
    network = config.build(
        InputSizes(num_channels=C, num_frames=S + 1, height=8, width=8, num_history_frames=1)
    ).double()
    for parameter in network.parameters():  # some start at zero, through which no gradient passes
        parameter.data += 0.1 * torch.randn_like(parameter)
    process = build_process(process=row, prediction="v" if row == "dydiff" else None)
    grid = timestep_grid(process.table, num_steps, "trailing")
    history, truth, noise = draw(B, 1, C, 8, 8), draw(B, S, C, 8, 8, seed=1), draw(2 * B, S + 1, C, 8, 8, seed=2)
    fresh = draw(num_steps, 2 * B, S + 1, C, 8, 8, seed=3)

    def score(dtype: torch.dtype) -> torch.Tensor:
        given = history.repeat_interleave(2, dim=0).to(dtype)
        start = start_noise(process, noise.shape, grid[0], noise.to(dtype), dtype=dtype)
        options = {"start": start, "timesteps": grid, "sampler": sampler, "noise": fresh.to(dtype), "history": given}
        frames = sample(process, lambda z, t: network(z, t, history=given), **options)
        members = frames[:, 1:].unflatten(0, (B, 2))
        names = {"pool_1": 1.0, "pool_2": 1.0, "spectral": 1.0}
        return sum(ensemble_scores(members, truth.to(dtype), 0.95, names).values()).mean()

    parameters = list(network.parameters())
    gradients = torch.autograd.grad(score(torch.float64), parameters)
    directions = [draw(*parameter.shape, seed=4) for parameter in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))

    def moved(by: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += by * direction
            value = float(score(torch.float64))
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= by * direction
        return value

    assert abs(slope) > 1e-3
    # the score has corners; at this distance none of a few hundred values crosses one
    assert (moved(1e-7) - moved(-1e-7)) / 2e-7 == pytest.approx(slope, rel=1e-5)
    network.float()
    for single, double in zip(torch.autograd.grad(score(torch.float32), parameters), gradients, strict=True):
        # float32 sums; scaled by the largest, as single entries cancel
        torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4 * float(double.abs().max()) + 1e-7)


def test_mistakes_are_named():
    for fields, message in (
        ({"alpha": 1.5}, "alpha"),
        ({"pool_weights": (1.0, -1.0)}, "pool_weights"),
        ({"pool_weights": (0.0,)}, "score has no weight above 0; give score.pool_weights or score.spectral_weight one"),
    ):
        with pytest.raises(ValueError) as caught:
            EnsembleScoreConfig(**fields)
        assert message in describe_error(caught.value, EnsembleScoreConfig)
    four = EnsembleScoreConfig(pool_weights=(1.0, 0.0, 1.0, 1.0))
    assert four.weights() == {"pool_1": 1.0, "pool_4": 1.0, "pool_8": 1.0}
    four.check(8, 8)
    with pytest.raises(ValueError, match="pool_weights has 4 entries, the last of blocks of 8 pixels; the network's"):
        four.check(8, 6)
