"""VRMSE against its formula by hand, and what The Well's own metric gives where it is installed."""

import numpy as np
import pytest

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.choice import ForecastKind, choose_suites
from dydiff_dist.evaluation.evaluate import evaluate
from dydiff_dist.evaluation.html_report import _groups
from dydiff_dist.evaluation.vrmse import vrmse, vrmse_suite

CHANNELS = ("density", "velocity_x", "velocity_y")


def cases(count=5, num_leads=30, num_members=3):
    rng = np.random.default_rng(0)
    for number in range(count):
        scale = np.array([1.0, 30.0, 1e-3])[:, None, None] * (1 + number)
        truth = (5 + rng.standard_normal((num_leads, 3, 6, 7)) * scale).astype(np.float32)
        members = (truth + rng.standard_normal((num_members, num_leads, 3, 6, 7)) * scale).astype(np.float32)
        yield ForecastCase(number, f"run-{number}", truth[:2], truth, members)


def by_hand(case):
    """(S, C) by loops over frames and channels."""
    scores = np.zeros((case.num_leads, 3))
    for lead in range(case.num_leads):
        for channel in range(3):
            mean = sum(member[lead, channel].astype(np.float64) for member in case.members) / len(case.members)
            truth = case.truth[lead, channel].astype(np.float64)
            error = ((mean - truth) ** 2).sum() / truth.size
            spread = ((truth - truth.sum() / truth.size) ** 2).sum() / (truth.size - 1)
            scores[lead, channel] = (error / (spread + 1e-7)) ** 0.5
    return scores


def test_scores_by_channel_lead_and_window_are_those_by_hand():
    evaluation = evaluate(cases(), suites=[vrmse_suite(CHANNELS, 3)])
    expected = np.stack([by_hand(case) for case in cases()]).mean(axis=0)
    by_lead, overall = evaluation.by_lead("forecast"), evaluation.overall("forecast")
    for channel, name in enumerate(CHANNELS):
        np.testing.assert_allclose(by_lead[f"vrmse_{name}"], expected[:, channel], rtol=1e-12)
        np.testing.assert_allclose(overall[f"vrmse_{name}"], expected[:, channel].mean(), rtol=1e-12)
    np.testing.assert_allclose(by_lead["vrmse"], expected.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(overall["vrmse_leads_6_to_12"], expected[5:12].mean(), rtol=1e-12)
    np.testing.assert_allclose(overall["vrmse_leads_13_to_30"], expected[12:30].mean(), rtol=1e-12)
    window = by_lead["vrmse_leads_6_to_12"]
    np.testing.assert_allclose(window[5:12], expected[5:12].mean(axis=1), rtol=1e-12)
    assert np.isnan(window[:5]).all() and np.isnan(window[12:]).all()
    low, high = evaluation.intervals("forecast", "vrmse_leads_13_to_30").overall
    assert low < overall["vrmse_leads_13_to_30"] < high


def test_the_mean_of_the_truth_scores_one_and_a_perfect_forecast_nothing():
    (case,) = cases(1)
    truth = case.truth.astype(np.float64)
    mean = np.broadcast_to(truth.mean(axis=(2, 3), keepdims=True), truth.shape)
    # 42 pixels: the variance is divided by 41; 1e-7 is a tenth of the last channel's variance
    np.testing.assert_allclose(vrmse(mean, truth)[:, :2], (41 / 42) ** 0.5, rtol=1e-6)
    assert not vrmse(truth, truth).any()


@pytest.mark.parametrize(("num_leads", "defined"), [(11, False), (12, True)])
def test_a_window_that_is_not_forecast_as_a_whole_has_no_score(num_leads, defined):
    evaluation = evaluate(cases(num_leads=num_leads), suites=[vrmse_suite((), 3)])
    overall = evaluation.overall("forecast")
    assert np.isfinite(overall["vrmse_leads_6_to_12"]) == defined and np.isnan(overall["vrmse_leads_13_to_30"])
    assert np.isfinite(overall["vrmse_2"])


def test_the_page_shows_it_among_scores_of_fields():
    scores = ["crps", *vrmse_suite(CHANNELS, 3).scores]
    groups = _groups([{"scores": {"forecast": dict.fromkeys(scores)}}])
    assert groups == {"Ensemble": ["crps"], "Fields": scores[1:]}


def kind(shape=(8, 2, 16, 16), **schema):
    facts = {"num_frames": 10, "shape": shape[1:], "dtype": "float32", **schema}
    return ForecastKind(schema=FrameSchema(**facts), shape=shape, num_history_frames=2, num_members=4, periodic=False)


def test_it_is_of_physical_fields():
    assert "vrmse" in kind().fitting_suites()
    for other in (
        kind((8, 2, 1, 1)),
        kind((8, 3, 16, 16), dtype="uint8"),
        kind((8, 1, 16, 16), channels=("vil",)),
    ):
        assert "vrmse" not in other.fitting_suites()
    (suite,) = choose_suites(["vrmse"], "default", kind((8, 1, 16, 16), channels=("vil",)))
    assert suite.scores[-1] == "vrmse_vil"
    with pytest.raises(ValueError, match="series have one pixel; leave 'vrmse' out"):
        choose_suites(["vrmse"], "default", kind((8, 2, 1, 1)))


def test_it_is_what_the_wells_own_metric_gives():
    spatial = pytest.importorskip("the_well.benchmark.metrics.spatial", reason="the_well is not installed")
    (case,) = cases(1, num_members=1)

    class Grid:
        n_spatial_dims = 2

    forecast, truth = (frames.astype(np.float64).transpose(0, 2, 3, 1) for frames in (case.members[0], case.truth))
    theirs = spatial.VRMSE()(forecast, truth, Grid).numpy()
    np.testing.assert_allclose(vrmse(case.members[0], case.truth), theirs, rtol=1e-12)
