"""Files in the layouts of The Well, DiffCast and LeRobot through the commands that a user gives."""

import json

import numpy as np
import pytest
from catalogue_inputs import write_lerobot, write_radar_file, write_well
from test_samples_through import SMALLER, command


def well(root):
    write_well(root, count=4, sizes=(16, 48), num_steps=34, boundaries={"x": "PERIODIC", "y": "OPEN"})
    return f"well --root {root} --num-frames 34 --fields density inflow velocity", (30, 4, 16, 48)


def radar(root):
    write_radar_file(root / "a.h5", {"train": 8, "test": 2}, size=(48, 56), num_frames=25)
    return f"radar_h5 --file {root / 'a.h5'} --preset shanghai --size 32 32 --valid-fraction 0.3", (20, 1, 32, 32)


def robot(root):
    write_lerobot(root / "set", (16,) * 8, splits={"train": "0:5", "val": "5:7", "test": "7:8"})
    return f"lerobot --root {root / 'set'} --num-frames 12 --size 64 64", (10, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write"), [("well", well), ("radar_h5", radar), ("lerobot", robot)])
def test_a_data_set_converts_audits_trains_forecasts_and_is_scored(tmp_path, name, write):
    options, shape = write(tmp_path / "in")
    shards, run, out = tmp_path / "shards", tmp_path / "run", tmp_path / "forecasts"
    command("tools/make_shards.py", *options.split(), "--out", shards, "--processes", 1)
    said = command("tools/inspect_shards.py", shards / "train", "--audit", 2, 0)
    assert said.count(": exact") == 2 and "NOT EXACT" not in said

    changes = {**SMALLER, "output_dir": run, "data.train": shards / "train", "data.valid": shards / "valid"}
    changes["data.expect"] = "null"  # these files are smaller than those that the configuration is for
    said = command("dydiff_dist/train.py", f"configs/{name}_small.json", *(f"{k}={v}" for k, v in changes.items()))
    assert "step 3/3: loss" in said and "nan" not in said

    cases = ("--shards", shards / "test", "--cases", 1, "--members", 2, "--frames", shape[0])
    command("tools/forecast.py", run, *cases, "--out", out)
    members = np.load(out / "case_000000.npz")["members"]
    assert members.shape == (2, *shape) and np.isfinite(members).all()
    command("tools/evaluate.py", out, "--out", tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    found = json.dumps(scores)
    expected = {"well": "vrmse_leads_13_to_30", "radar_h5": "csi_mean", "lerobot": "ssim"}
    assert expected[name] in found
