"""Configurations that no run can have: a dry run refuses each in one line that names the key, at once."""

import json
import os
import sys
import time

import pytest
from run_commands import TRAIN, run

from dydiff_dist.ranks.world import read_world
from dydiff_dist.tasks.config import AutoencoderRunConfig, RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.config import load_config
from dydiff_dist.training.run_plan import describe, make_plan


def dry_run(path, *overrides):
    """What --dry-run does, in this process."""
    return describe(DiffusionTask(make_plan(load_config(path, RunConfig, list(overrides)), read_world(), True)))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.steps=1" + 400 * "0", "training.steps is 1000"),
        ("training.steps=4294967295", "training.steps is 4294967295: input should be less than"),
        ("training.global_batch_size=1" + 400 * "0", "training.global_batch_size is 1000"),
        ("training.steps=1" + 5000 * "0", "training.steps: Exceeds the limit"),
        ("model.width=1000000000", "model.width is 1000000000: input should be less than or equal to 65536"),
        ("model.depth=1000000000", "model.depth is 1000000000: input should be less than or equal to 1000"),
        ("model.mlp_ratio=1e300", "model.mlp_ratio is 1e+300"),
        ("diffusion.num_timesteps=1000000000", "diffusion.num_timesteps is 1000000000"),
        ("data.num_workers=1000000000", "data.num_workers is 1000000000"),
        ("training.learning_rate=1e999", "training.learning_rate is inf: give a finite number"),
        ("training.learning_rate=NaN", "training.learning_rate is nan: give a finite number"),
        ("training.faults.grace_sec=1e300", "training.faults.grace_sec is 1e+300"),
        ("deepspeed.x=1e999", "deepspeed.x is inf"),
        ("seed=-1", "seed is -1: input should be greater than or equal to 0"),
        ("seed=9223372036854775808", "seed is 9223372036854775808: give a number below"),
        ('output_dir="a\\u0000b"', "output_dir is 'a\\x00b': give text without NUL"),
        ('output_dir="a\\ud800b"', "output_dir is 'a\\ud800b': give text without"),
        ("output_dir=", "output_dir is '': string should have at least 1 character"),
        ("output_dir=" + 300 * "x", "output_dir has a name of more than 255 bytes"),
        ("training=" + 900 * "[" + 900 * "]", "nested too deeply"),
        ("training=" + 9000 * "[" + 9000 * "]", "override training: "),
        ("training=[]", "training"),
        ("data=[1]", "data"),
        ("model=[]", "model"),
        ("diffusion=null", "diffusion"),
        ("=3", "must have the form section.key=value"),
        (".=3", "unknown key"),
    ],
)
def test_it_is_one_line_with_the_key(tiny_config, override, key):
    start = time.monotonic()
    with pytest.raises(ValueError) as caught:
        dry_run(tiny_config, override)
    assert key in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600, caught.value
    assert time.monotonic() - start < 15


def test_an_override_below_a_list_is_one_line(tiny_config):
    tree = json.loads(tiny_config.read_text())
    tiny_config.write_text(json.dumps(tree | {"training": []}))
    with pytest.raises(ValueError, match=r"override 'training.steps=3': 'training' is a value, not a section"):
        dry_run(tiny_config, "training.steps=3")
    with pytest.raises(ValueError, match=r"training is \[\]: input should be an object"):
        dry_run(tiny_config)


@pytest.mark.parametrize("text", ['{"a": ' * 5000 + "1" + "}" * 5000, "[" * 100_000, '{"seed": 1' + 5000 * "0" + "}"])
def test_files_beyond_what_can_be_read_are_one_line(tiny_config, text):
    tiny_config.write_text(text)
    with pytest.raises(ValueError, match=r"tiny\.json") as caught:
        dry_run(tiny_config)
    assert "\n" not in str(caught.value)


def test_an_output_dir_that_can_be_no_folder_is_named(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for folder in ("file", "file/run/deeper", "lost"):
        with pytest.raises(ValueError, match=r"output_dir is .*, but .* is no folder; set output_dir to another path"):
            dry_run(tiny_config, f"output_dir={tmp_path / folder}")
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(ValueError, match="can't be written to: Permission denied; get the right"):
            dry_run(tiny_config, f"output_dir={tmp_path / 'closed' / 'run'}")
    dry_run(tiny_config, f"output_dir={tmp_path / 'not' / 'yet' / 'there'}")
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    "override", ["model.channels=[1000000000]", "model.latent_channels=1000000000", "model.layers_per_block=100000"]
)
def test_an_autoencoder_has_bounds_too(tiny_config, override):
    tree = json.loads(tiny_config.read_text())
    tree = {key: tree[key] for key in ("output_dir", "data", "training")} | {"model": {"latent_channels": 4}}
    for key in ("num_validation_cases", "num_validation_members"):
        del tree["training"][key]
    tiny_config.write_text(json.dumps(tree))
    load_config(tiny_config, AutoencoderRunConfig)
    with pytest.raises(ValueError, match=f"{override.partition('=')[0]}.* is .*: input should be less than"):
        load_config(tiny_config, AutoencoderRunConfig, [override])


def test_latents_that_are_absent_name_the_tool_that_makes_them(tiny_config):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; .* or encode_latents"):
        dry_run(tiny_config, "data.train=nowhere", "autoencoder.path=nowhere_either")


@pytest.mark.slow
def test_the_program_says_it_at_once(tiny_config):
    done = run([sys.executable, TRAIN, tiny_config, "--dry-run", "model.depth=1000000000"], timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "model.depth" in done.stderr
