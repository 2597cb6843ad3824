"""Which configurations may go on with a run that another one began."""

import pytest

from dydiff_dist.ranks.world import read_world
from dydiff_dist.run_config import load_config
from dydiff_dist.training.run_plan import make_plan


@pytest.fixture
def saved(tiny_config) -> dict:
    """The configuration as a checkpoint holds it."""
    return load_config(tiny_config).model_dump(mode="json")


def plan(path, *changes: str):
    return make_plan(load_config(path, list(changes)), read_world())


def test_the_same_configuration_goes_on(tiny_config, saved):
    plan(tiny_config, "training.log_every_steps=7").check_same_run(saved)


@pytest.mark.parametrize("key", ["diffusion.snr_factor", "data.frame_stride"])
def test_a_key_that_is_newer_than_the_run_may_be_left_at_its_default(tiny_config, saved, key):
    section, name = key.split(".")
    del saved[section][name]
    plan(tiny_config).check_same_run(saved)


def test_what_changes_the_run_is_refused_and_named(tiny_config, saved):
    del saved["diffusion"]["snr_factor"]
    with pytest.raises(ValueError, match=r"holds a run with diffusion.snr_factor = None, the configuration says 2.0; "):
        plan(tiny_config, "diffusion.snr_factor=2").check_same_run(saved)
    saved["model"]["width"] += 1
    with pytest.raises(ValueError, match=r"holds a run with model.width = 17, the configuration says 16; set "):
        plan(tiny_config).check_same_run(saved)
