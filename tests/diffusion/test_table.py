"""The tables: every process' and prediction's numbers against their papers' formulas, looking up, refusals."""

import math
from dataclasses import replace

import pytest
import torch
from process_rows import PREDICTIONS, ROWS, ROWS_AND_PREDICTIONS, process_of

from dydiff_dist.diffusion import ProcessTable, build_process
from dydiff_dist.diffusion import table as tables
from dydiff_dist.diffusion.schedules import alpha_bar_schedule, gamma_bar_schedule

N = 200


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def path_of(row):
    """(a, s) of a row, written out again."""
    if row.startswith("flow_matching"):
        tau = float64([(t + 1) / N for t in range(N)])  # Lipman et al. 2023, the straight path
        return 1 - tau, tau
    if row.startswith("edm"):
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)  # Karras et al. 2022, Eq. 5, from σ_min up
        return torch.ones(N, dtype=torch.float64), float64([(low + t / (N - 1) * (high - low)) ** 7 for t in range(N)])
    alpha_bar = alpha_bar_schedule(N, "cosine")
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


MIXED = {
    "dydiff": "both",
    "dydiff_independent": "frames",
    "standard": "none",
    "correlated_noise": "noise",
    "correlated_noise_constant": "noise",
}


@pytest.mark.parametrize("row", ROWS)
def test_signal_noise_and_operators(row):
    table = process_of(row, num_timesteps=N, gamma_ratio=0.9).table
    a, s = path_of(row)
    torch.testing.assert_close(table.signal, a, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(table.noise, s, rtol=1e-12, atol=0)
    mixed = MIXED.get(row, row.split("_")[-1])
    gamma_bar = gamma_bar_schedule(N, "constant" if "constant" in row else "cosine", 0.9)
    none = torch.ones_like(gamma_bar)
    assert torch.equal(table.frame_gamma, gamma_bar if mixed in ("both", "frames") else none)
    assert torch.equal(table.noise_gamma, gamma_bar if mixed in ("both", "noise") else none)
    assert table.shares_operator == (mixed in ("none", "both"))
    assert table.mixes == (mixed != "none")
    assert table.is_whitened_standard == (mixed in ("none", "both") or "constant" in row)
    torch.testing.assert_close(table.log_snr, a.log() - s.log(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("row", "prediction"), ROWS_AND_PREDICTIONS)
def test_targets(row, prediction):
    table = process_of(row, prediction, num_timesteps=N, sigma_data=0.7).table
    a, s = table.signal, table.noise
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    assert table.mixes_target == (prediction != "x0")
    assert table.targets_clean_frames == (prediction == "x0")
    if prediction != "edm":
        p, q = {"eps": (one, zero), "v": (a, -s), "x0": (zero, one), "velocity": (one, -one)}[prediction]
        assert torch.equal(table.target_noise, p) and torch.equal(table.target_signal, q)
    p, q = table.target_noise, table.target_signal
    torch.testing.assert_close(table.determinant, a * p - s * q, rtol=1e-14, atol=0)


def test_edm_is_the_papers_preconditioning():
    """x̂ = c_skip z + c_out F with input c_in z, table 1 of Karras et al. 2022; F has unit variance."""
    sigma_data = 0.5
    table = build_process(process="edm", sigma_data=sigma_data).table
    sigma = table.noise
    total = sigma.square() + sigma_data**2
    torch.testing.assert_close(table.target_noise / table.determinant, sigma_data**2 / total, rtol=1e-12, atol=0)
    torch.testing.assert_close(-sigma / table.determinant, sigma * sigma_data / total.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(table.input_std, total.sqrt(), rtol=1e-14, atol=0)
    variance = table.target_noise.square() + table.target_signal.square() * sigma_data**2
    torch.testing.assert_close(variance, torch.ones_like(sigma), rtol=1e-9, atol=0)
    assert build_process(process="edm", sigma_min=0.01, sigma_max=10.0).table.noise[[0, -1]].tolist() == pytest.approx(
        [0.01, 10.0], rel=1e-12
    )


@pytest.mark.parametrize("row", ["dydiff", "flow_matching_none"])
def test_edm_prediction_has_unit_variance_on_any_path(row):
    table = process_of(row, "edm", sigma_data=2.0).table
    variance = table.target_noise.square() + 4 * table.target_signal.square()
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-9, atol=0)
    c_out_squared = (table.noise / table.determinant).square()  # the variance that z leaves unexplained
    expected = 4 * table.noise.square() / (4 * table.signal.square() + table.noise.square())
    torch.testing.assert_close(c_out_squared, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("row", ROWS)
def test_own_prediction(row):
    own = {"flow": "velocity", "edm_": "edm"}.get(row[:4], "eps")
    chosen, left_out = process_of(row, own).table, process_of(row).table
    assert torch.equal(chosen.target_noise, left_out.target_noise)
    assert torch.equal(chosen.target_signal, left_out.target_signal)


@pytest.mark.parametrize("row", ROWS)
def test_looking_up_timesteps(row):
    table = process_of(row, num_timesteps=N).table
    levels = table.at(torch.tensor([-1, 0, N - 1, 7]))
    for name, values in levels._asdict().items():
        column = getattr(table, name)
        clean = {"signal": 1.0, "noise": 0.0, "frame_gamma": 1.0, "noise_gamma": 1.0}
        assert values[0].item() == clean.get(name, values[0].item())
        assert torch.equal(values[1:], column[[0, N - 1, 7]])
        assert values.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise": torch.ones(3)}, r"column noise is torch\.float32 of shape \(3,\)"),
        ({"frame_gamma": float64([1.0, 1.0])}, r"column frame_gamma is torch\.float64 of shape \(2,\)"),
        ({"input_std": float64([[1.0] * 3])}, r"column input_std is torch\.float64 of shape \(1, 3\)"),
        ({"noise": float64([0.0, 0.5, 1.0])}, "noise is out of range"),
        ({"signal": float64([0.9, 0.5, -0.1])}, "signal is out of range"),
        ({"signal": float64([0.9, math.nan, 0.1])}, "column signal holds nan at timestep 1"),
        ({"noise_gamma": float64([1.0, 0.5, 0.0])}, "noise_gamma is out of range"),
        ({"frame_gamma": float64([1.0, 1.5, 1.0])}, "frame_gamma is out of range"),
        ({"signal": float64([0.1, 0.9, 0.1])}, "signal/noise must fall"),
        ({"target_signal": float64([0.0, math.inf, 0.0])}, "column target_signal holds inf at timestep 1"),
        ({"target_noise": float64([1.0, 1.0, 0.0])}, "at timestep 2 the target says nothing of the frames"),
        ({"mixes_target": False, "noise_gamma": float64([0.5] * 3)}, "needs the same operator on frames and noise"),
    ],
)
def test_refused_tables(change, words):
    one = torch.ones(3, dtype=torch.float64)
    table = ProcessTable(
        signal=float64([0.9, 0.5, 0.1]),
        noise=float64([0.1, 0.5, 0.9]),
        frame_gamma=one,
        noise_gamma=one,
        target_noise=one,
        target_signal=torch.zeros_like(one),
    )
    assert table.num_timesteps == 3
    with pytest.raises(ValueError, match=words):
        replace(table, **change)


def test_the_tests_go_through_all_that_is_shipped():
    assert tuple(tables.PREDICTIONS) == PREDICTIONS
    assert {options.get("process", "dydiff") for options in ROWS.values()} == set(tables.PROCESSES)


def test_a_process_is_shown_in_a_line():
    shown = repr(build_process(prediction="v", min_snr=5.0))
    assert "ProcessTable(1000 timesteps)" in shown and "tensor" not in shown


@pytest.mark.parametrize(
    ("fields", "mean", "deviation"),
    [
        ({"process": "edm"}, -1.2, 1.2),
        ({"process": "edm", "timestep_density": (0.5, 0.7)}, 0.5, 0.7),
        ({"process": "flow_matching", "timestep_density": (0, 1)}, 0, 1),
        ({"process": "standard", "timestep_density": (-1.0, 0.5)}, -1.0, 0.5),
    ],
)
def test_timesteps_are_drawn_so_that_the_log_of_the_noise_is_normal(fields, mean, deviation):
    table = build_process(num_timesteps=20_000, **fields).table
    assert table.timestep_shares.sum().item() == pytest.approx(1, rel=1e-12)
    drawn = table.timesteps_at((torch.arange(100_000) + 0.5) / 100_000)
    level = -table.log_snr[drawn]
    expected = mean + deviation * torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    middle = slice(2000, -2000)  # beyond them the timesteps end
    torch.testing.assert_close(level[middle], expected[middle], rtol=0, atol=0.02)


def test_timesteps_are_drawn_alike_unless_said():
    quantiles = torch.tensor([0.0, 0.1, 0.25, 0.999999999])
    for fields in ({}, {"process": "edm", "timestep_density": "uniform"}):
        assert build_process(num_timesteps=8, **fields).table.timesteps_at(quantiles).tolist() == [0, 0, 2, 7]
    shares = torch.tensor([0.0, 0.5, 0.0, 0.5], dtype=torch.float64)
    table = replace(build_process(num_timesteps=4).table, timestep_shares=shares)
    assert table.timesteps_at(torch.tensor([0.0, 0.49, 0.5, 0.9999999])).tolist() == [1, 1, 3, 3]
