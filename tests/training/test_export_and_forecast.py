"""A checkpoint exported, taken elsewhere and forecast from, with nothing else there, as a user does it."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from run_commands import ROOT, TRAIN, run

from dydiff_dist.checkpoints.export import export_checkpoint, find_checkpoint
from dydiff_dist.forecasting import CaseReader, find_model, forecast_case, load_forecaster


def _done(*command) -> str:
    result = run([sys.executable, *command])
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_an_exported_model_needs_nothing_of_its_run(tiny_config, tiny_shards, tmp_path):
    process = ("process=standard", "frames_relative_to=regression", "noise_like_errors_of=persistence")
    _done(TRAIN, tiny_config, *(f"diffusion.{name}" for name in process))  # which follow from statistics of the data
    trained = Path(json.loads(tiny_config.read_text())["output_dir"])

    def forecast(model: Path, name: str) -> np.ndarray:
        out = tmp_path / name
        options = ("--shards", tiny_shards / "test", "--members", 2, "--cases", 2, "--out", out)
        _done(ROOT / "tools/forecast.py", model, *options)
        with np.load(out / "case_000000.npz", allow_pickle=False) as case:
            return case["members"]

    expected = forecast(trained, "of_the_run")
    _done(ROOT / "tools/export.py", trained, "--out", tmp_path / "exported" / "whole")
    checkpoint = find_checkpoint(trained, step=None)
    export_checkpoint(checkpoint, tmp_path / "exported" / "parts", max_file_bytes=2**13)
    export_checkpoint(checkpoint, tmp_path / "exported" / "half", dtype="bfloat16")
    with pytest.raises(FileNotFoundError, match=f"{checkpoint} is a checkpoint; export it: python tools/export.py"):
        find_model(checkpoint)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "exported", elsewhere)
    shutil.rmtree(trained)

    assert (forecast(elsewhere / "whole", "whole") == expected).all()
    scored = _done(ROOT / "tools/evaluate.py", tmp_path / "whole", "--out", tmp_path / "scores")
    assert "of persistence's, over all lead times, 2 cases" in scored
    assert '"title": "Forecasts of whole"' in (tmp_path / "scores" / "report.html").read_text()

    cases = CaseReader.for_model(elsewhere / "whole", tiny_shards / "test")
    whole, file, parts, half = (
        forecast_case(load_forecaster(elsewhere / name, device="cpu"), cases.read(0), num_members=2).members
        for name in ("whole", "whole/model.safetensors", "parts", "half")
    )
    assert len(list((elsewhere / "parts").glob("model-*.safetensors"))) > 1
    assert (file == whole).all() and (parts == whole).all()
    assert 0 < np.abs(half - whole).mean() < 0.05 * whole.std()  # bfloat16 has 8 bits
