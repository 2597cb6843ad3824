"""Rain scores against direct counts."""

import re

import numpy as np
import pytest

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.evaluation import ForecastCase, evaluate
from dydiff_dist.evaluation.choice import ForecastKind, choose_suites
from dydiff_dist.evaluation.rain import (
    RainProtocol,
    contingency_counts,
    event_scores,
    fss_terms,
    rain_suite,
)

PROTOCOL = RainProtocol(thresholds=(20.0, 60.0, 300.0), pools=(4,), fss_windows=(3,))


def _rain(*shape: int, seed: int = 0) -> np.ndarray:
    """Integers in 0..99, so that some values equal the thresholds."""
    return np.random.default_rng(seed).integers(0, 100, shape).astype(np.float64)


def _case(number: int, num_members: int = 3, rain: bool = True) -> ForecastCase:
    history, truth = _rain(2, 1, 8, 12, seed=number), _rain(4, 1, 8, 12, seed=100 + number) * rain
    return ForecastCase(number, f"k{number}", history, truth, _rain(num_members, 4, 1, 8, 12, seed=200 + number) * rain)


@pytest.mark.parametrize("rule", [">=", ">"])
def test_counts_equal_a_direct_count(rule: str) -> None:
    forecast, truth = _rain(2, 3, 8, 12, seed=1), _rain(3, 8, 12, seed=2)
    counts = contingency_counts(forecast, truth, PROTOCOL.model_copy(update={"rule": rule}))
    for lead in range(3):
        for index, threshold in enumerate(PROTOCOL.thresholds):
            wanted = [0, 0, 0, 0]
            for field in forecast[:, lead]:
                for f, t in zip(field.ravel(), truth[lead].ravel(), strict=True):
                    predicted = f >= threshold if rule == ">=" else f > threshold
                    observed = t >= threshold if rule == ">=" else t > threshold
                    wanted[{(1, 1): 0, (0, 1): 1, (1, 0): 2, (0, 0): 3}[predicted, observed]] += 1
            assert counts[lead, index].tolist() == wanted


def test_event_scores_of_a_textbook_table() -> None:
    # Finley's tornado forecasts (1884) as given by Wilks, Statistical Methods in the Atmospheric Sciences
    scores = event_scores(np.array([28.0, 23.0, 72.0, 2680.0]))
    wanted = {"csi": 0.228, "pod": 0.549, "far": 0.720, "bias": 1.961, "hss": 0.355}
    assert {name: round(float(value), 3) for name, value in scores.items()} == wanted


def test_csi_of_many_cases_is_that_of_all_pixels_together() -> None:
    cases = [_case(number) for number in range(5)]
    evaluation = evaluate(cases, suites=[rain_suite(PROTOCOL)])
    forecast = np.stack([case.members.mean(axis=0) for case in cases])
    truth = np.stack([case.truth for case in cases])
    hits = ((forecast >= 60) & (truth >= 60)).sum(axis=(2, 3, 4))
    either = ((forecast >= 60) | (truth >= 60)).sum(axis=(2, 3, 4))
    by_lead, overall = evaluation.by_lead("forecast"), evaluation.overall("forecast")
    np.testing.assert_allclose(by_lead["csi_60"], hits.sum(axis=0) / either.sum(axis=0), rtol=1e-12)
    assert overall["csi_60"] == pytest.approx(hits.sum() / either.sum(), rel=1e-12)
    assert np.isnan(overall["csi_300"])  # no event at 300 anywhere: undefined, and left out of the mean
    assert overall["csi_mean"] == pytest.approx((overall["csi_20"] + overall["csi_60"]) / 2, rel=1e-12)
    pooled = [
        np.array([[x[..., i : i + 4, j : j + 4].max(axis=(-2, -1)) for j in (0, 4, 8)] for i in (0, 4)])
        for x in (forecast, truth)
    ]
    hits, either = ((pooled[0] >= 60) & (pooled[1] >= 60)).sum(), ((pooled[0] >= 60) | (pooled[1] >= 60)).sum()
    assert overall["csi_pool4_60"] == pytest.approx(hits / either, rel=1e-12)


def test_protocol_choices_change_what_they_say() -> None:
    cases = [_case(number) for number in range(3)]

    def csi(**changes) -> float:
        suite = rain_suite(PROTOCOL.model_copy(update=changes))
        return float(evaluate(cases, suites=[suite]).overall("forecast")["csi_mean"])

    members = np.concatenate([c.members for c in cases])[:, :, 0]
    truth = np.concatenate([np.broadcast_to(c.truth, c.members.shape) for c in cases])[:, :, 0]

    def direct(threshold: float) -> float:
        return ((members >= threshold) & (truth >= threshold)).sum() / (
            (members >= threshold) | (truth >= threshold)
        ).sum()

    assert csi(forecast="members") == pytest.approx((direct(20) + direct(60)) / 2, rel=1e-12)
    assert csi(undefined="zero") == pytest.approx(csi() * 2 / 3, rel=1e-12)
    assert csi(lead_times="averaged") != csi()
    assert csi(rule=">", integer_range=(0, 255)) < csi(rule=">")  # a mean of 60.3 is cut to 60, which is not above 60


def test_zero_rain_is_undefined_and_counted() -> None:
    evaluation = evaluate([_case(0), _case(1, rain=False)], suites=[rain_suite(PROTOCOL)])
    overall = evaluation.overall("forecast")
    assert overall["share_with_event_20"] == 0.5 and overall["share_with_event_300"] == 0
    dry = evaluate([_case(1, rain=False)], suites=[rain_suite(PROTOCOL)]).overall("forecast")
    assert np.isnan(dry["csi_20"]) and np.isnan(dry["csi_mean"]) and np.isnan(dry["fss_window3_20"])


def test_fss_equals_a_direct_count_of_fractions() -> None:
    forecast, truth = _rain(1, 2, 8, 12, seed=1), _rain(2, 8, 12, seed=2)
    error, reference = fss_terms(forecast, truth, PROTOCOL)

    def fractions(events: np.ndarray) -> np.ndarray:
        padded = np.pad(events.astype(float), 1)
        return np.array([[padded[i : i + 3, j : j + 3].mean() for j in range(12)] for i in range(8)])

    for lead in range(2):
        p, o = fractions(forecast[0, lead] >= 60), fractions(truth[lead] >= 60)
        assert error[lead, 1, 0] == pytest.approx(((p - o) ** 2).mean(), rel=1e-9)
        assert reference[lead, 1, 0] == pytest.approx((p**2).mean() + (o**2).mean(), rel=1e-9)


def test_a_perfect_forecast_scores_perfectly() -> None:
    case = _case(0)
    perfect = ForecastCase(0, "k", case.history, case.truth, np.stack([case.truth] * 2))
    overall = evaluate([perfect], suites=[rain_suite(PROTOCOL)]).overall("forecast")
    ideal = {"csi_60": 1, "pod_60": 1, "far_60": 0, "bias_60": 1, "hss_60": 1, "fss_window3_60": 1, "csi_pool4_60": 1}
    assert {name: float(overall[name]) for name in ideal} == ideal


def test_presets_refuse_other_data() -> None:
    def kind(num_history: int, *shape: int) -> ForecastKind:
        schema = FrameSchema(num_frames=13, shape=shape[1:], dtype="uint8", channels=("vil",))
        counts = {"num_history_frames": num_history, "num_members": 8}
        return ForecastKind(schema=schema, shape=shape, periodic=False, **counts)

    assert choose_suites(["rain"], "sevir-lr", kind(7, 6, 1, 128, 128))[0].name == "rain"
    for wanted, other in (
        ("frames 7 and 6, these forecasts have 5 and 7", kind(5, 7, 1, 128, 128)),
        ("size 128 and 128, these forecasts have 64 and 64", kind(7, 6, 1, 64, 64)),
    ):
        with pytest.raises(ValueError, match=re.escape(f"preset 'sevir-lr' asks for {wanted}")):
            choose_suites(["rain"], "sevir-lr", other)
    with pytest.raises(ValueError, match="rain scores are of one channel, the forecasts have 3; leave 'rain' out"):
        choose_suites(["rain"], "default", kind(5, 7, 3, 64, 64))
    with pytest.raises(ValueError, match="must be odd"):
        RainProtocol(fss_windows=(4,))
