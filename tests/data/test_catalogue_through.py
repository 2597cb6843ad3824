"""Files in the layouts of The Well, DiffCast and LeRobot through the commands that a user gives."""

import numpy as np
import pytest
from catalogue_inputs import write_lerobot, write_radar_file, write_well
from test_samples_through import SMALLER, command


def well(root):
    write_well(root, count=4, sizes=(16, 48), num_steps=34, boundaries={"x": "PERIODIC", "y": "OPEN"})
    return f"well --root {root} --num-frames 34 --fields density inflow velocity"


def radar(root):
    write_radar_file(root / "a.h5", {"train": 8, "test": 2}, size=(48, 56), num_frames=25)
    return f"radar_h5 --file {root / 'a.h5'} --preset shanghai --size 32 32 --valid-fraction 0.3"


def robot(root):
    write_lerobot(root / "set", (16,) * 8, splits={"train": "0:5", "val": "5:7", "test": "7:8"})
    return f"lerobot --root {root / 'set'} --num-frames 12 --size 64 64"


@pytest.mark.long
@pytest.mark.parametrize(("name", "write"), [("radar_h5", radar), ("lerobot", robot)])
def test_its_configuration_trains(tmp_path, name, write):
    train(tmp_path, name, write)


@pytest.mark.slow
def test_the_well_converts_audits_trains_forecasts_and_is_scored(tmp_path):
    num_leads = 30
    shards = train(tmp_path, "well", well)
    said = command("tools/inspect_shards.py", shards / "train", "--audit", 2, 0)
    assert said.count(": exact") == 2 and "NOT EXACT" not in said
    cases = ("--shards", shards / "test", "--cases", 1, "--members", 2, "--frames", num_leads)
    command("tools/forecast.py", tmp_path / "run", *cases, "--out", tmp_path / "forecasts")
    members = np.load(tmp_path / "forecasts" / "case_000000.npz")["members"]
    assert members.shape == (2, num_leads, 4, 16, 48) and np.isfinite(members).all()
    said = command("tools/evaluate.py", tmp_path / "forecasts", "--out", tmp_path / "scores")
    assert "vrmse_leads_13_to_30" in said and "vrmse_velocity_y" in said


def train(folder, name, write):
    """Makes shards as the documentation says and trains a few steps of the configuration for them."""
    shards = folder / "shards"
    command("tools/make_shards.py", *write(folder / "in").split(), "--out", shards, "--processes", 1)
    changes = {**SMALLER, "output_dir": folder / "run", "data.train": shards / "train", "data.valid": shards / "valid"}
    changes["data.expect"] = "null"  # these files are smaller than those that the configuration is for
    said = command("dydiff_dist/train.py", f"configs/{name}_small.json", *(f"{k}={v}" for k, v in changes.items()))
    assert "step 3/3: loss" in said and "nan" not in said
    return shards
