"""What another engine costs: a subclass of `Engine` (plain_engine.py beside this file) and a line in `ENGINES`. The
same trainer drives it, with the losses that DeepSpeed has."""

import sys
from pathlib import Path

import numpy as np
import pytest
from plain_engine import PlainEngine
from run_commands import TRAIN, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.engine.protocol import Engine
from dydiff_dist.hardware import GPU_MODELS
from dydiff_dist.planning.estimate import Cluster, RunEstimate
from dydiff_dist.planning.step_time import Assumptions
from dydiff_dist.planning.summary import as_dict, as_text
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import load_config

PROGRAM = Path(__file__).with_name("plain_engine.py")


def scalars(folder, name: str) -> np.ndarray:
    """A scalar of every step, as TensorBoard has it (float32)."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return np.array([event.value for event in events.Scalars(name)])


@pytest.mark.long
def test_the_same_trainer_drives_another_engine(tiny_config, tmp_path):
    runs = {name: tmp_path / name for name in ("deepspeed", "plain")}
    own = {
        "deepspeed": [TRAIN, tiny_config, "deepspeed.zero_optimization.stage=0"],
        "plain": [PROGRAM, tiny_config, "engine=plain", "deepspeed={}"],
    }
    for name, folder in runs.items():
        done = run([sys.executable, *own[name], f"output_dir={folder}"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert "validation CRPS" in done.stdout and (folder / "model" / "model.safetensors").is_file()
    for name in ("loss/train", "optimizer/gradient_norm", "optimizer/learning_rate", "validation/loss"):
        plain, deepspeed = (scalars(runs[engine], name) for engine in ("plain", "deepspeed"))
        assert len(plain) == (2 if name.startswith("validation") else 6)  # validated halfway and at the end
        # float32 sums in another order; six steps of Adam let that grow to a few units of the last place
        np.testing.assert_allclose(plain, deepspeed, rtol=1e-5, err_msg=name)
    # and it resumes: the second half again, from the checkpoint of the first
    command = [sys.executable, *own["plain"], f"output_dir={tmp_path / 'halves'}"]
    assert run([*command, "training.steps=6", "training.schedule=constant"]).returncode == 0
    whole = scalars(tmp_path / "halves", "loss/train")
    stopped = [*command[:-1], f"output_dir={tmp_path / 'again'}", "training.schedule=constant"]
    assert run([*stopped, "training.steps=3"]).returncode == 0
    resumed = run([*stopped, "training.steps=6"])
    assert resumed.returncode == 0 and "resumed after step 3" in resumed.stdout
    assert np.array_equal(scalars(tmp_path / "again", "loss/train"), whole)


def test_an_engine_is_a_name_of_the_registry(tiny_config, monkeypatch):
    with pytest.raises(ValueError, match="engine is 'plain'; it must be one of deepspeed"):
        load_config(tiny_config, RunConfig, ["engine=plain"])
    monkeypatch.setitem(ENGINES, "plain", PlainEngine)
    with pytest.raises(ValueError, match="the section deepspeed is for engine 'deepspeed', it is 'plain'; remove"):
        load_config(tiny_config, RunConfig, ["engine=plain"])
    config = load_config(tiny_config, RunConfig, ["engine=plain", "deepspeed={}"])
    assert config.engine_options == {}
    assert load_config(tiny_config, RunConfig).engine_options == {"zero_optimization": {"stage": 2}}


def plan(config) -> RunEstimate:
    return RunEstimate(config, Cluster(gpu=GPU_MODELS["h100"], nodes=1, gpus_per_node=2), Assumptions())


def test_another_engine_is_planned_by_what_it_says_itself(tiny_config, monkeypatch):
    monkeypatch.setitem(ENGINES, "plain", PlainEngine)
    estimate = plan(load_config(tiny_config, RunConfig, ["engine=plain", "deepspeed={}"]))
    numbers, text, num_params = as_dict(estimate, None), as_text(estimate, None), estimate.num_params
    memory = numbers["memory_bytes"]
    assert (memory["weights"], memory["optimizer"], memory["buffers"]) == (4 * num_params, 8 * num_params, 0)
    assert memory["phase"] == "backward pass" and "zero_stage" not in numbers
    assert numbers["sent_bytes_per_gpu_and_step"] == 4 * num_params  # a ring of two
    assert set(numbers["step_parts_sec"]["update"]) == {"optimizer", "moving average"}
    assert "plain torch <-" in text and "ZeRO" not in text
    assert as_dict(plan(load_config(tiny_config, RunConfig)), None)["zero_stage"] == 2


def test_an_engine_that_says_nothing_is_not_planned(tiny_config, monkeypatch):
    class SilentEngine(PlainEngine):
        footprint = Engine.__dict__["footprint"]

    monkeypatch.setitem(ENGINES, "plain", SilentEngine)
    config = load_config(tiny_config, RunConfig, ["engine=plain", "deepspeed={}"])
    with pytest.raises(ValueError, match="SilentEngine, does not say what it needs; plan with another one"):
        plan(config)
