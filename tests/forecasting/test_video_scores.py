"""All scores of video from the command line: FVD, LPIPS and optical flow, on one process and on two."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dydiff_dist.forecasting import ForecastRun

REPOSITORY = Path(__file__).resolve().parents[2]


class Extractor(torch.nn.Module):
    """Takes clips as the field's I3D file does; its features are means over quarters of the frame."""

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        return torch.nn.functional.adaptive_avg_pool3d(x / 127.5 - 1, [2, 2, 2]).flatten(1)


@pytest.fixture
def extractor(tmp_path) -> Path:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Extractor()).save(str(tmp_path / "extractor.pt"))
    return tmp_path / "extractor.pt"


@pytest.fixture
def backbone(tmp_path) -> Path:
    """Random weights by the names and shapes of torchvision's AlexNet."""
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    weights = {}
    for key, (outputs, inputs, size) in shapes.items():
        weight = torch.randn(outputs, inputs, size, size, generator=generator)
        weights[f"features.{key}.weight"] = weight / (inputs * size**2) ** 0.5
        weights[f"features.{key}.bias"] = torch.zeros(outputs)
    torch.save(weights, tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


def _command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=REPOSITORY)


@pytest.mark.slow
@pytest.mark.distributed
def test_all_scores_of_video_are_the_same_on_one_process_and_on_two(
    image_model, image_shards, extractor, backbone, tmp_path
) -> None:
    pytest.importorskip("pysteps", reason="pysteps is not installed (pip install 'dydiff_dist[nowcast]')")
    ForecastRun(image_model, image_shards / "test", tmp_path / "forecasts", num_members=3, device="cpu").run()
    sha256 = hashlib.sha256(extractor.read_bytes()).hexdigest()
    options = ["tools/evaluate.py", tmp_path / "forecasts", "--pictures", "--optical-flow"]
    options += ["--fvd", extractor, "--fvd-sha256", sha256, "--lpips", backbone, "--out"]
    one = _command(*options, tmp_path / "one")
    two = _command("-m", "torch.distributed.run", "--nproc_per_node", 2, "--standalone", *options, tmp_path / "two")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert (tmp_path / "one" / "scores.json").read_bytes() == (tmp_path / "two" / "scores.json").read_bytes()
    record = json.loads((tmp_path / "one" / "scores.json").read_text())
    scores, protocol = record["scores"], record["protocol"]
    assert protocol["fvd"]["extractor_sha256"] == sha256 and protocol["fvd"]["num_frames"] == 7
    assert (scores["forecast"]["fvd"]["num_real"], scores["forecast"]["fvd"]["num_forecast"]) == (4, 12)
    # the pattern moves: following it beats leaving it, which looks more like video than random weights do
    for score in ("lpips", "fvd"):
        flow, still, ours = (scores[name][score]["overall"] for name in ("optical_flow", "persistence", "forecast"))
        assert flow < still < ours
    assert {"psnr", "ssim", "lpips_best_member"} <= set(scores["forecast"])
    refused = _command(*options[:-1], "--fvd-sha256", "0" * 64, "--out", tmp_path / "none")
    assert refused.returncode == 2 and "it was not loaded" in refused.stderr
