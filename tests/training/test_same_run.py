"""Which configurations may go on with a run that another one began."""

import json
import shutil
from pathlib import Path

import pytest

from dydiff_dist.diffusion.config import DiffusionConfig
from dydiff_dist.ranks.world import read_world
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import load_config
from dydiff_dist.training.run_plan import make_plan

SAVED_BY_0_1_0 = Path(__file__).with_name("saved_by_0_1_0.json")
"""The configuration in a checkpoint that version 0.1.0 wrote of `tiny_config` without validation."""


@pytest.fixture
def saved(tiny_config) -> dict:
    """The configuration as a checkpoint holds it."""
    return load_config(tiny_config, RunConfig).model_dump(mode="json")


def plan(path, *changes: str):
    return make_plan(load_config(path, RunConfig, list(changes)), read_world())


def test_the_same_configuration_goes_on(tiny_config, saved):
    plan(tiny_config, "training.log_every_steps=7").check_same_run(saved)


@pytest.mark.parametrize("key", ["diffusion.snr_factor", "data.frame_stride"])
def test_a_key_that_is_newer_than_the_run_may_be_left_at_its_default(tiny_config, saved, key):
    section, name = key.split(".")
    del saved[section][name]
    plan(tiny_config).check_same_run(saved)


def test_what_changes_the_run_is_refused_and_named(tiny_config, saved):
    del saved["diffusion"]["snr_factor"]
    with pytest.raises(ValueError, match=r"holds a run with diffusion.snr_factor = 1.0, the configuration says 2.0; "):
        plan(tiny_config, "diffusion.snr_factor=2").check_same_run(saved)
    saved["model"]["width"] = 32
    with pytest.raises(ValueError, match=r"holds a run with model.width = 32, the configuration says 16; set "):
        plan(tiny_config).check_same_run(saved)


@pytest.mark.parametrize(
    "change",
    [
        *("data.damaged_samples=skip", "data.max_damaged_rate=0.5", "data.num_workers=3", "data.prefetch_batches=7"),
        *("data.remote.attempts=9", "data.valid=null"),
    ],
)
def test_what_changes_how_data_are_had_may_change(tiny_config, saved, change):
    plan(tiny_config, change).check_same_run(saved)


@pytest.mark.parametrize("change", ["data.shuffle_window_bytes=0", "data.augmentation.periodic_shift=false", "seed=1"])
def test_what_changes_what_is_learned_may_not(tiny_config, saved, change):
    key = change.partition("=")[0]
    with pytest.raises(ValueError, match=f"holds a run with {key} = .*; set it back, or set output_dir to"):
        plan(tiny_config, change).check_same_run(saved)


def test_the_same_shards_may_lie_elsewhere_and_others_are_refused(tiny_config, tiny_shards, saved, tmp_path):
    here = plan(tiny_config)
    shutil.copytree(tiny_shards / "train", tmp_path / "moved")
    moved = plan(tiny_config, f"data.train={tmp_path / 'moved'}")
    moved.check_same_run(saved, here.data_sha256)
    with pytest.raises(ValueError, match=r"holds a run with data.train = .*; set it back"):
        moved.check_same_run(saved)  # of a version that did not say which data it had
    others = plan(tiny_config, f"data.train={tiny_shards / 'test'}")
    with pytest.raises(ValueError, match=r"holds a run on other data than data.train .*test has now"):
        others.check_same_run(saved, here.data_sha256)


def test_a_run_of_an_older_version_goes_on(tiny_config):
    saved = json.loads(SAVED_BY_0_1_0.read_text())
    saved["data"]["train"] = json.loads(tiny_config.read_text())["data"]["train"]
    assert saved["training"]["more_ema_decays"] == []
    plan(tiny_config, "data.valid=null").check_same_run(saved)
    saved["data"]["num_future_frames"] = 3
    with pytest.raises(ValueError, match=r"holds a run with data.num_future_frames = 3, the configuration says 4; "):
        plan(tiny_config, "data.valid=null").check_same_run(saved)


def test_retired_keys_are_no_difference_where_they_changed_nothing(tiny_config, saved, monkeypatch):
    monkeypatch.setattr(DiffusionConfig, "retired", {"old_key": 1})
    saved["diffusion"]["old_key"] = 1
    plan(tiny_config).check_same_run(saved)
    saved["diffusion"]["old_key"] = 2
    with pytest.raises(
        ValueError, match=r"holds a run of another version \(its configuration: diffusion.old_key is 2: "
    ):
        plan(tiny_config).check_same_run(saved)
