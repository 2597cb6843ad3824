"""Aggregation, baselines and what is said about cases that can't be scored."""

import json

import numpy as np
import pytest

from dydiff_dist.evaluation import (
    Climatology,
    ForecastCase,
    Persistence,
    ScoreTable,
    SeasonalNaive,
    UnreadableCase,
    evaluate,
    format_table,
    write_summary,
)
from dydiff_dist.evaluation.table import exact_sum

FRAME_CHW = (2, 6, 5)


def _training_frames(number: int) -> np.ndarray:
    return np.random.default_rng(1000 + number).normal(size=(7, *FRAME_CHW)).astype(np.float32)


def _case(number: int, num_members: int = 4, num_leads: int = 3) -> ForecastCase:
    rng = np.random.default_rng(number)
    history, truth = rng.normal(size=(2, *FRAME_CHW)), rng.normal(size=(num_leads, *FRAME_CHW))
    members = rng.normal(size=(num_members, num_leads, *FRAME_CHW)) * 10.0 ** rng.integers(-3, 4)
    return ForecastCase(number, f"key{number}", history, truth, members)


def _evaluate(numbers):
    return evaluate((_case(number) for number in numbers), Climatology(_training_frames, 9))


def test_scores_do_not_depend_on_the_order_of_cases_or_on_how_they_are_shared() -> None:
    together = _evaluate(range(40))
    backwards = _evaluate(reversed(range(40)))
    shares = [_evaluate(range(rank, 40, 3)) for rank in range(3)]
    for name, table in together.tables.items():
        merged = ScoreTable().merge(share.tables[name] for share in shares)
        for score in ("crps", "crps_fair", "mse", "mae"):
            for other in (backwards.tables[name], merged):
                # bit for bit: sums over cases are rounded once
                np.testing.assert_array_equal(other.by_lead(score), table.by_lead(score))
                assert other.overall(score) == table.overall(score)


def test_forecasts_and_baselines_are_clipped_to_the_bounds_of_their_quantity() -> None:
    """Rain below 0 is no rain: it is scored as none, and the protocol says so."""
    case = _case(1)
    history, truth = np.abs(case.history), np.abs(case.truth)
    bounds = ((0, None), (0, 2.5))
    clipped = case.members.copy()
    clipped[:, :, 0] = np.maximum(clipped[:, :, 0], 0)
    clipped[:, :, 1] = np.clip(clipped[:, :, 1], 0, 2.5)
    assert (clipped != case.members).any()
    bounded = evaluate(
        [ForecastCase(1, "a", history, truth, case.members)], Climatology(_training_frames, 9), bounds=bounds
    )
    by_hand = evaluate([ForecastCase(1, "a", history, truth, clipped)], Climatology(_training_frames, 9))
    assert bounded.overall("forecast") == by_hand.overall("forecast")
    assert bounded.overall("climatology")["crps"] != by_hand.overall("climatology")["crps"]  # its frames go below 0
    assert bounded.protocol["clipped_to"] == [[0, None], [0, 2.5]] and "clipped_to" not in by_hand.protocol


def test_exact_sum_keeps_what_float64_addition_loses() -> None:
    assert exact_sum(np.array([[1e16], [1.0], [-1e16]]))[0] == 1.0


def test_a_case_is_scored_once() -> None:
    table = ScoreTable()
    table.add(3, {"crps": np.ones(2)})
    with pytest.raises(ValueError, match="case 3 was scored twice"):
        table.add(3, {"crps": np.ones(2)})
    with pytest.raises(ValueError, match=r"case 4 has scores \['mse'\]"):
        table.add(4, {"mse": np.ones(2)})
    with pytest.raises(ValueError, match="no score 'csi'; there are crps"):
        table.by_lead("csi")


def test_nan_is_named_and_counted_and_left_out_of_the_baselines_too(tmp_path) -> None:
    bad = _case(2)
    bad.members[0, 0, 0, 0, 0] = np.nan
    evaluation = evaluate([_case(1), bad, _case(3)], Climatology(_training_frames, 9))
    assert evaluation.num_cases == 2
    assert evaluation.errors == {2: "case 2 (key2): 1 of 720 values of the forecast are NaN or infinite"}
    for part in ("truth", "history"):
        other = _case(4)
        getattr(other, part)[0, 0, 0, :2] = np.inf
        assert f"2 of {getattr(other, part).size} values of the {part} are" in evaluate([other]).errors[4]
    assert all(sorted(table.cases) == [1, 3] for table in evaluation.tables.values())
    written = write_summary(evaluation, tmp_path / "scores.json")
    assert written == json.loads((tmp_path / "scores.json").read_text())
    assert written["errors"] == {"2": evaluation.errors[2]} and written["protocol"]["num_cases"] == 2


def test_persistence_repeats_the_last_frame() -> None:
    case = _case(0)
    repeated = Persistence().ensemble(case)
    assert repeated.shape == (1, 3, *FRAME_CHW)
    np.testing.assert_array_equal(repeated[0, 2], case.history[-1])


def test_the_seasonal_forecast_repeats_the_last_season() -> None:
    case = _case(0, num_leads=5)
    longer = ForecastCase(0, "k", np.arange(7.0).reshape(7, 1, 1, 1), np.zeros((5, 1, 1, 1)), np.zeros((1, 5, 1, 1, 1)))
    assert SeasonalNaive(3).ensemble(longer).ravel().tolist() == [4, 5, 6, 4, 5]
    np.testing.assert_array_equal(SeasonalNaive(1).ensemble(case), Persistence().ensemble(case))
    with pytest.raises(ValueError, match="a season of 3 frames is longer than the 2 given ones"):
        SeasonalNaive(3).ensemble(case)
    with pytest.raises(ValueError, match="the season is 0 frames"):
        SeasonalNaive(0)


def test_every_baseline_stands_in_the_table_over_the_same_cases() -> None:
    cases = [_case(1), UnreadableCase(2, "case 2: no such file"), _case(3)]
    evaluation = evaluate(cases, Climatology(_training_frames, 9), SeasonalNaive(2))
    assert list(evaluation.tables) == ["forecast", "persistence", "climatology", "seasonal_naive"]
    assert all(sorted(table.cases) == [1, 3] for table in evaluation.tables.values())
    assert evaluation.errors == {2: "case 2: no such file"} and evaluation.keys == {1: "key1", 3: "key3"}
    assert evaluation.protocol["baselines"]["seasonal_naive"]["season_frames"] == 2
    lines = format_table(evaluation).splitlines()
    assert lines[0].split() == ["CRPS"] and lines[1].split()[-1] == "/season"  # MSE would make the lines too long


def test_climatological_members_are_training_frames_named_by_case_and_member() -> None:
    climatology = Climatology(_training_frames, 9, seed=5)
    pool = np.concatenate([_training_frames(number) for number in range(9)])
    few, many = climatology.ensemble(_case(11, 3, 2)), climatology.ensemble(_case(11, 40, 2))
    np.testing.assert_array_equal(few, many[:3])
    np.testing.assert_array_equal(many[:, 0], many[:, 1])
    assert all((pool == member).all(axis=(1, 2, 3)).any() for member in many[:, 0])
    assert not np.array_equal(climatology.ensemble(_case(12, 3, 2)), few)
    assert not np.array_equal(Climatology(_training_frames, 9, seed=6).ensemble(_case(11, 3, 2)), few)
    assert len(Climatology(_training_frames, 9, num_members=5).ensemble(_case(11, 3, 2))) == 5


def test_climatological_draws_are_uniform_over_all_training_frames() -> None:
    climatology = Climatology(lambda number: np.arange(7 * number, 7 * number + 7).reshape(7, 1, 1, 1), 9)
    drawn = np.concatenate([climatology.ensemble(_case(number, 50, 1)).ravel() for number in range(126)])
    counts = np.bincount(drawn, minlength=63)
    # 6300 draws over 63 frames: mean 100, standard deviation 10; five of them
    assert counts.min() > 50 and counts.max() < 150


def test_climatological_mean_is_that_of_all_frames_and_is_what_mse_is_taken_of() -> None:
    climatology = Climatology(_training_frames, 9)
    wanted = np.concatenate([_training_frames(number) for number in range(9)]).mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(climatology.mean(), wanted, rtol=1e-6, atol=1e-9)
    case = _case(0)
    mse = evaluate([case], climatology).tables["climatology"].by_lead("mse")
    np.testing.assert_allclose(mse, ((climatology.mean() - case.truth) ** 2).mean(axis=(1, 2, 3)), rtol=1e-12)


def test_the_table_has_a_row_for_each_lead_time_and_one_for_all() -> None:
    lines = format_table(_evaluate(range(3))).splitlines()
    assert [line.split("|")[0].strip() for line in lines[3:6]] == ["+1", "+2", "+3"]
    assert lines[-1].startswith(" all") or lines[-1].startswith("all")
    assert len({len(line) for line in lines[1:]}) == 1
