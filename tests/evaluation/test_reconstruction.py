"""Scores of decoded frames: against their definitions, additive over processes, CSI for rain alone."""

import numpy as np
import pytest

from dydiff_dist.evaluation.colors import field_style
from dydiff_dist.evaluation.figures import reconstruction_figure
from dydiff_dist.evaluation.reconstruction import ReconstructionScores, format_reconstruction


def noisy(seed, shape=(4, 1, 16, 16), spread=10.0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 255, shape).astype(np.float32)
    return truth + spread * rng.standard_normal(shape).astype(np.float32), truth


def test_psnr_and_mse_are_their_definitions():
    decoded, truth = noisy(0)
    scores = ReconstructionScores(255.0)
    scores.add(decoded, truth)
    mse = np.square(decoded.astype(np.float64) - truth).mean(axis=(1, 2, 3))
    summary = scores.summary()
    assert summary["mse"] == pytest.approx(mse.mean())
    assert summary["psnr"] == pytest.approx((10 * np.log10(255**2 / mse)).mean())
    assert 0 < summary["ssim"] < 1 and not any(name.startswith("csi") for name in summary)


def test_eight_bit_frames_are_clipped_first():
    scores = ReconstructionScores(255.0, integer=True)
    scores.add(np.full((1, 3, 16, 16), 300.0), np.full((1, 3, 16, 16), 255, np.uint8))
    assert scores.summary()["psnr"] == 100


def test_scores_of_parts_add_up():
    pairs = [noisy(seed) for seed in range(3)]
    whole, parts = ReconstructionScores(255.0, units="rain"), [ReconstructionScores(255.0, units="rain") for _ in pairs]
    for part, (decoded, truth) in zip(parts, pairs, strict=True):
        whole.add(decoded, truth)
        part.add(decoded, truth)
    assert parts[0].merge(parts[1:]).summary() == pytest.approx(whole.summary())


def test_csi_counts_events_of_rain():
    truth = np.zeros((1, 1, 16, 16), np.float32)
    truth[..., :4] = 100
    decoded = np.zeros_like(truth)
    decoded[..., :2] = 100
    scores = ReconstructionScores(255.0, channels=("vil",))
    scores.add(decoded, truth)
    summary = scores.summary()
    assert (summary["csi_16"], summary["csi_74"]) == (0.5, 0.5)
    assert "csi_219" not in summary  # no event anywhere
    assert "CSI 16: 0.500, 74: 0.500" in format_reconstruction(summary)


def test_small_frames_have_no_ssim():
    scores = ReconstructionScores(1.0)
    scores.add(*noisy(0, (2, 2, 8, 8)))
    assert "ssim" not in scores.summary() and "SSIM" not in format_reconstruction(scores.summary())


def test_the_picture_shows_frames_decoded_and_difference():
    decoded, truth = noisy(0, (5, 3, 16, 16))
    style = field_style(3, dtype="uint8")
    figure = reconstruction_figure([("a", truth.astype(np.uint8), decoded)] * 2, style, num_columns=3)
    assert len(figure.axes) == 2 * 3 * 4
