"""Spectra, divergence, image similarity and ensemble suites against independent calculations."""

import numpy as np
import pytest

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.evaluation import ForecastCase, evaluate, write_summary
from dydiff_dist.evaluation.choice import SUITES, ForecastKind, choose_suites
from dydiff_dist.evaluation.comparison import protocol_differences
from dydiff_dist.evaluation.fields import (
    blockiness_suite,
    divergence_and_gradient,
    flow_suite,
    image_suite,
    patch_gradients,
    power_spectrum,
    psnr,
    spectrum_suite,
    ssim,
)
from dydiff_dist.evaluation.score_tables import format_more_scores
from dydiff_dist.evaluation.suites import ensemble_suite, pool_blocks


def _plane_wave(k_h: int, k_w: int, size: int = 32) -> np.ndarray:
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    return np.cos(2 * np.pi * (k_h * rows + k_w * columns) / size)


def _case(num_channels: int = 2, size: int = 16, num_members: int = 4, number: int = 0) -> ForecastCase:
    rng = np.random.default_rng(number)
    frames = [rng.uniform(0, 255, (*n, num_channels, size, size)) for n in ((2,), (3,), (num_members, 3))]
    return ForecastCase(number, f"k{number}", *frames)


def test_a_plane_wave_has_its_energy_at_its_wavenumber() -> None:
    spectrum = power_spectrum(np.stack([_plane_wave(3, 4), np.zeros((32, 32))]), periodic=True)
    wanted = np.zeros(17)
    wanted[5] = 0.25  # half the mean square, which is one half
    np.testing.assert_allclose(spectrum, wanted, atol=1e-15)


def test_the_spectrum_sums_to_half_the_mean_square_of_a_band_limited_field() -> None:
    rng = np.random.default_rng(0)
    field = sum(rng.normal() * _plane_wave(*rng.integers(-7, 8, 2)) for _ in range(20)) + 3.0
    total = power_spectrum(field[None], periodic=True).sum()
    assert total == pytest.approx(0.5 * (field**2).mean(), rel=1e-12)


@pytest.mark.parametrize("shape", [(8, 12), (9, 7), (8, 7)])
def test_the_spectrum_equals_the_sum_over_all_waves_of_each_shell(shape: tuple[int, int]) -> None:
    field = np.random.default_rng(0).normal(size=(1, *shape))
    power = 0.5 * np.abs(np.fft.fft2(field[0]) / field.size) ** 2
    wanted = np.zeros(min(shape) // 2 + 1)
    for i, row in enumerate(np.fft.fftfreq(shape[0], 1 / shape[0])):
        for j, column in enumerate(np.fft.fftfreq(shape[1], 1 / shape[1])):
            shell = round(np.hypot(row, column))
            if shell < len(wanted):
                wanted[shell] += power[i, j]
    np.testing.assert_allclose(power_spectrum(field, periodic=True), wanted, rtol=1e-12)


def test_the_taper_keeps_the_power_of_noise_and_hides_the_frame_edge() -> None:
    noise = np.random.default_rng(0).normal(size=(200, 1, 32, 32))
    ratio = power_spectrum(noise, False).mean(axis=0)[2:] / power_spectrum(noise, True).mean(axis=0)[2:]
    # 200 frames: a shell of at least 12 waves has 2 % standard error
    np.testing.assert_allclose(ratio, 1, atol=0.1)
    ramp = np.broadcast_to(np.arange(32.0), (1, 32, 32))
    assert power_spectrum(ramp, False)[8:].sum() < 1e-2 * power_spectrum(ramp, True)[8:].sum()


@pytest.mark.parametrize("periodic", [True, False])
def test_a_stream_function_gives_no_divergence_and_a_potential_gives_nothing_else(periodic: bool) -> None:
    k = 2 * np.pi * 2 / 64
    rows, columns = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
    rotating = np.stack([np.cos(k * columns) * np.sin(k * rows), -np.sin(k * columns) * np.cos(k * rows)])
    spreading = np.stack([np.sin(k * columns), np.zeros((64, 64))])
    divergence, gradient = divergence_and_gradient(rotating, 0, 1, periodic)
    # central differences of both terms have the same error inside, one-sided ones at the edge do not
    assert divergence < (1e-28 if periodic else 1e-2) * gradient
    divergence, gradient = divergence_and_gradient(spreading, 0, 1, periodic)
    assert divergence == pytest.approx(gradient, rel=1e-12)
    # d/dx sin(kx) has mean square k²/2; central differences lose (k²/6) of the slope
    assert divergence == pytest.approx(k**2 / 2, rel=1e-12 if periodic else 0.03)


def test_blurring_shows_in_the_spectrum_of_the_mean_but_not_of_the_members() -> None:
    overall = evaluate([_case(number=n) for n in range(8)], suites=[spectrum_suite(True)]).overall("forecast")
    high = slice(3, 8)
    np.testing.assert_allclose(overall["spectrum_members"][high] / overall["spectrum_truth"][high], 1, atol=0.2)
    np.testing.assert_allclose(overall["spectrum_mean"][high] / overall["spectrum_members"][high], 1 / 4, atol=0.05)
    assert overall["log_spectral_distance_db"] < 1


def test_wavenumbers_that_are_empty_in_the_truth_are_left_out_of_the_distance() -> None:
    truth = np.broadcast_to(_plane_wave(0, 3) + _plane_wave(0, 5), (3, 1, 32, 32))
    members = 2 * truth[None] + 1e-9 * np.random.default_rng(0).normal(size=(4, 3, 1, 32, 32))
    case = ForecastCase(0, "k", truth[:1], truth, members)
    distance = evaluate([case], suites=[spectrum_suite(True)]).overall("forecast")["log_spectral_distance_db"]
    assert distance == pytest.approx(10 * np.log10(4), rel=1e-6)  # twice the field is four times the power
    empty = ForecastCase(0, "k", truth[:1] * 0, truth * 0, members)
    overall = evaluate([empty], suites=[spectrum_suite(True)]).overall("forecast")
    assert np.isnan(overall["log_spectral_distance_db"])


def test_relative_divergence_of_independent_noise_is_one_over_root_two() -> None:
    overall = evaluate([_case(size=64)], suites=[flow_suite(0, 1, True)]).overall("forecast")
    assert overall["relative_divergence"] == pytest.approx(np.sqrt(0.5), rel=0.02)  # 49,152 pixels


def test_gradients_across_patch_edges_and_inside_equal_those_of_a_loop() -> None:
    frames = np.random.default_rng(0).normal(size=(2, 3, 12, 10)).astype(np.float32)
    found = patch_gradients(frames, 4)
    for number, frame in enumerate(frames.astype(np.float64)):
        across, inside = [], []
        for row in range(12):
            for column in range(10):
                for next_row, next_column in ((row + 1, column), (row, column + 1)):
                    if next_row < 12 and next_column < 10:
                        same = row // 4 == next_row // 4 and column // 4 == next_column // 4
                        step = np.abs(frame[:, next_row, next_column] - frame[:, row, column])
                        (inside if same else across).extend(step)
        assert found[0][number] == pytest.approx(np.mean(across), rel=1e-12)
        assert found[1][number] == pytest.approx(np.mean(inside), rel=1e-12)
    assert np.isnan(patch_gradients(frames, 12)[0]).all()  # one patch: no edge within the frame


def test_blockiness_sees_patches_in_the_members_and_not_in_the_truth() -> None:
    case = _case(size=64)
    steps = np.kron(np.random.default_rng(1).normal(0, 300, (8, 8)), np.ones((8, 8)))
    cut = ForecastCase(0, "k", case.history, case.truth, case.members + steps)
    overall = evaluate([cut], suites=[blockiness_suite(8)]).overall("forecast")
    across, inside = patch_gradients(cut.members, 8)
    assert overall["blockiness"] == pytest.approx(across.mean() / inside.mean(), rel=1e-12) and across.shape == (4, 3)
    assert overall["blockiness"] > 1.5
    assert overall["blockiness_truth"] == pytest.approx(1, abs=0.05)  # noise: some thousand pairs across edges
    flat = ForecastCase(0, "k", case.history, case.truth * 0, case.members * 0)
    assert np.isnan(evaluate([flat], suites=[blockiness_suite(8)]).overall("forecast")["blockiness"])
    assert evaluate([case], suites=[blockiness_suite(8)]).overall("forecast")["blockiness"] == pytest.approx(
        1, abs=0.05
    )


@pytest.mark.parametrize(("patch_pixels", "fits"), [(None, False), (1, False), (4, True), (16, False), (32, False)])
def test_blockiness_is_scored_where_patches_are_known_and_meet(patch_pixels: int | None, fits: bool) -> None:
    frames = FrameSchema(num_frames=5, shape=(1, 16, 16), dtype="float32")
    counts = {"num_history_frames": 2, "num_members": 8, "periodic": False}
    kind = ForecastKind(schema=frames, shape=(3, 1, 16, 16), patch_pixels=patch_pixels, **counts)
    assert ("blockiness" in kind.fitting_suites()) == fits
    if not fits:
        with pytest.raises(ValueError, match=r"patches of (\d+|a size that is not known); leave 'blockiness' out"):
            choose_suites(["blockiness"], "default", kind)


def test_psnr_and_ssim_equal_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 255, (3, 3, 32, 40))
    frames = np.clip(truth + rng.normal(0, 20, truth.shape), 0, 255)
    both = np.stack([truth, frames])  # many forecasts at once are scored like each by itself
    ours_psnr, ours_ssim = psnr(both, truth, 255.0)[1], ssim(both, truth, 255.0)[1]
    assert (ours_ssim == ssim(frames, truth, 255.0)).all() and (ours_psnr == psnr(frames, truth, 255.0)).all()
    for lead in range(3):
        wanted = metrics.peak_signal_noise_ratio(truth[lead], frames[lead], data_range=255.0)
        assert ours_psnr[lead] == pytest.approx(wanted, rel=1e-12)
        wanted = metrics.structural_similarity(
            truth[lead],
            frames[lead],
            data_range=255.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ours_ssim[lead] == pytest.approx(wanted, rel=1e-12)


def test_image_scores_of_members_and_of_the_best_of_them() -> None:
    case = _case(num_channels=3)
    members = np.stack([case.truth, case.truth + 10.0, case.truth + 300.0])
    evaluation = evaluate([ForecastCase(0, "k", case.history, case.truth, members)], suites=[image_suite(255.0)])
    overall = evaluation.overall("forecast")
    assert overall["psnr_best_member"] == 100 and overall["ssim_best_member"] == pytest.approx(1)
    assert overall["psnr"] < 60
    with pytest.raises(ValueError, match="SSIM needs frames of at least 11x11"):
        ssim(case.truth[..., :8, :8], case.truth[..., :8, :8], 255.0)


def test_blocks_are_pooled_in_float64_and_incomplete_ones_left_out() -> None:
    values = np.random.default_rng(0).uniform(0, 255, (2, 7, 10)).astype(np.float32)
    blocks = [[values[:, i : i + 3, j : j + 3] for j in (0, 3, 6)] for i in (0, 3)]
    mean = np.moveaxis([[block.mean(axis=(1, 2), dtype=np.float64) for block in row] for row in blocks], -1, 0)
    np.testing.assert_allclose(pool_blocks(values, 3, "avg"), mean, rtol=1e-14)
    largest = np.moveaxis([[block.max(axis=(1, 2)) for block in row] for row in blocks], -1, 0)
    assert (pool_blocks(values, 3, "max") == largest).all()


def test_pooled_crps_equals_crps_of_pooled_fields() -> None:
    cases = [_case(number=n) for n in range(3)]
    overall = evaluate(cases, suites=[ensemble_suite(pools=(4, 32))]).overall("forecast")
    pooled = [
        ForecastCase(c.number, c.key, *(pool_blocks(x, 4, "max") for x in (c.history, c.truth, c.members)))
        for c in cases
    ]
    assert overall["crps_max_pool4"] == pytest.approx(float(evaluate(pooled).overall("forecast")["crps"]), rel=1e-12)
    assert np.isnan(overall["crps_avg_pool32"])


def test_the_rank_histogram_is_flat_for_an_exchangeable_ensemble_and_not_for_a_narrow_one() -> None:
    cases = [_case(size=32, number=n) for n in range(4)]
    overall = evaluate(cases, suites=[ensemble_suite()]).overall("forecast")
    np.testing.assert_allclose(overall["rank_histogram"], 1 / 5, atol=0.01)  # 24,576 pixels: standard error 0.0026
    narrow = [ForecastCase(c.number, c.key, c.history, c.truth, 127 + c.members * 1e-3) for c in cases]
    narrow_overall = evaluate(narrow, suites=[ensemble_suite()]).overall("forecast")
    assert overall["rank_deviation"] < 0.02 < 0.5 < narrow_overall["rank_deviation"] <= 1


SCHEMA = {"dtype": "float32", "channels": ("vil",)}


@pytest.mark.parametrize(
    ("num_channels", "schema", "wanted"),
    [
        (1, SCHEMA, ["ensemble", "calibration", "spectrum", "rain"]),
        (
            2,
            SCHEMA | {"channels": ("u", "v"), "vector_channels": (0, 1)},
            ["ensemble", "calibration", "spectrum", "flow", "vrmse"],
        ),
        (
            3,
            SCHEMA | {"dtype": "uint8", "channels": ("red", "green", "blue")},
            ["ensemble", "calibration", "spectrum", "image"],
        ),
        (1, SCHEMA | {"channels": ("temperature",)}, ["ensemble", "calibration", "spectrum", "vrmse"]),
        (
            2,
            SCHEMA | {"channels": ("t", "z"), "latitudes": tuple(range(32, 0, -2))},
            ["ensemble", "calibration", "spectrum", "vrmse", "latitude"],
        ),
    ],
)
def test_suites_that_fit_the_data_are_chosen(num_channels: int, schema: dict, wanted: list[str]) -> None:
    shape = (3, num_channels, 16, 16)
    frames = FrameSchema(num_frames=5, shape=shape[1:], **schema)
    kind = ForecastKind(schema=frames, shape=shape, num_history_frames=2, num_members=8, periodic=False)
    assert [suite.name for suite in choose_suites(None, "default", kind)] == wanted
    with pytest.raises(ValueError, match=f"unknown scores 'fvd'; there are {', '.join(SUITES)}"):
        choose_suites(["fvd"], "default", kind)


def test_every_score_is_written_with_protocol_and_interval(tmp_path) -> None:
    suites = [ensemble_suite(), spectrum_suite(False), flow_suite(0, 1, False)]
    evaluation = evaluate([_case(number=n) for n in range(3)], suites=suites)
    record = write_summary(evaluation, tmp_path / "scores.json")
    for suite in suites:
        assert record["protocol"]["scores"][suite.name] == suite.protocol
        for score in suite.scores:
            assert len(record["scores"]["forecast"][score]["by_lead"]) == 3
            assert len(record["scores"]["forecast"][score]["interval_95"]) == 2
        for profile in suite.profiles:
            assert len(record["profiles"]["forecast"][profile]["by_lead"]) == 3
    assert "relative_divergence" in format_more_scores(evaluation)


def test_differences_between_protocols_are_named() -> None:
    first = evaluate([_case()], suites=[ensemble_suite()]).protocol | {"model": "a"}
    second = evaluate([_case(num_members=3)], suites=[ensemble_suite()]).protocol | {"model": "b"}
    assert protocol_differences(first, first) == []
    patched = evaluate([_case()], suites=[ensemble_suite(), blockiness_suite(4)]).protocol
    other_patches = evaluate([_case()], suites=[ensemble_suite(), blockiness_suite(8)]).protocol
    assert protocol_differences(first, patched) == protocol_differences(patched, other_patches) == []
    assert protocol_differences(first, second) == ["num_members: 4 and 3"]
