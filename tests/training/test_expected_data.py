"""Planning without the data, and data that are not what the configuration expects."""

import json

import pytest
import torch

from dydiff_dist.ranks.world import World
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.config import load_config
from dydiff_dist.training.run_plan import describe, make_plan

ONE_PROCESS = World(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
EXPECTED = {"num_frames": 6, "shape": [2, 16, 16], "dtype": "float32", "allowed_augmentations": ["periodic_shift"]}


@pytest.fixture
def expecting_config(tiny_config):
    """`tiny_config` with an expectation that is true."""
    tree = json.loads(tiny_config.read_text())
    tree["data"]["expect"] = {"num_samples": 1000, "frames": EXPECTED}
    tiny_config.write_text(json.dumps(tree))
    return tiny_config


def plan(path, *overrides, may_lack_data=False):
    return make_plan(load_config(path, RunConfig, list(overrides)), ONE_PROCESS, may_lack_data=may_lack_data)


def test_a_plan_without_the_data_equals_the_one_with_them(expecting_config):
    real = describe(DiffusionTask(plan(expecting_config))).splitlines()
    expected = describe(DiffusionTask(plan(expecting_config, "data.train=absent", may_lack_data=True))).splitlines()
    differing = [pair for pair in zip(real, expected, strict=True) if pair[0] != pair[1]]
    assert [line.split(":")[0] for line, _ in differing] == ["data", "training"]  # where they lie, and epochs
    assert "absent (not here; as data.expect says): 1000 samples of 2 + 4 frames" in differing[0][1]
    assert "24 samples of 2 + 4 frames" in differing[0][0]


def test_only_a_plan_may_lack_data(expecting_config):
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        plan(expecting_config, "data.train=absent")
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        plan(expecting_config, "data.train=absent", "data.expect=null", may_lack_data=True)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("shape", [3, 16, 16], r"\(2, 16, 16\)"),
        ("num_frames", 8, "6"),
        ("num_actions", 4, "0"),
        ("has_logvar", True, "False"),
    ],
)
def test_other_data_than_expected_are_refused(expecting_config, name, value, found):
    with pytest.raises(ValueError, match=rf"data.expect.frames.{name} is .*, .* has {found}; give the shards"):
        DiffusionTask(plan(expecting_config, f"data.expect.frames.{name}={json.dumps(value)}"))


def test_the_expectation_is_judged_like_data(expecting_config):
    with pytest.raises(ValueError, match="does not allow it"):
        plan(
            expecting_config,
            "data.train=absent",
            "data.expect.frames.allowed_augmentations=[]",
            may_lack_data=True,
        )
    assert (
        "expect" not in load_config(expecting_config, RunConfig).model_dump()["data"]
    )  # nothing that a result depends on
