"""Whole runs on tiny data, started the way a user starts them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_commands import ROOT, TORCHRUN, TRAIN, chatter, environment, run, two_ranks
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dydiff_dist.data.order import SampleOrder
from dydiff_dist.data.shard_set import SampleAddress, ShardSet
from dydiff_dist.tasks.config import RunConfig


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def error_lines(result: subprocess.CompletedProcess) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error:")]


def train(*arguments, launcher=(sys.executable,)) -> subprocess.CompletedProcess:
    return run([*launcher, TRAIN, *arguments])


@pytest.fixture
def finished(tiny_config) -> Path:
    """The folder of a finished run of one process."""
    result = train(tiny_config, "training.keep_last_checkpoints=3")
    assert result.returncode == 0 and not chatter(result), result.stdout + result.stderr
    for fact in ("step 6/6: loss", "samples/s", "ETA", "validation CRPS", "model: "):
        assert fact in result.stdout, result.stdout
    return Path(json.loads(tiny_config.read_text())["output_dir"])


@pytest.mark.distributed
def test_resumed_and_two_rank_runs_equal_the_first(tiny_config, finished, tmp_path):
    expected = weights(finished)
    assert any((finished / "tensorboard").iterdir())
    assert sorted(path.name for path in (finished / "checkpoints").glob("step_*")) == ["step_000003", "step_000006"]

    again = train(tiny_config, "training.keep_last_checkpoints=3")
    assert again.returncode == 0 and "complete" in again.stdout

    other_model = train(tiny_config, "model.width=32")
    assert other_model.returncode == 2
    assert "holds a run with model.width = 16, the configuration says 32" in error_lines(other_model)[0]

    exported = run([sys.executable, "tools/export.py", finished, "--out", tmp_path / "exported" / "model"])
    assert exported.returncode == 0, exported.stderr
    for name in ("model.safetensors", "config.json"):  # what training exports at its end, byte for byte
        assert (tmp_path / "exported" / "model" / name).read_bytes() == (finished / "model" / name).read_bytes(), name

    # the newest checkpoint is damaged: the run falls back to the one before and ends with the same weights, bit for bit
    newest = finished / "checkpoints" / "step_000006"
    victim = newest / "rank_00000.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    shutil.rmtree(finished / "model")
    resumed = train(tiny_config, "training.keep_last_checkpoints=3")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step 3" in resumed.stdout
    assert "damaged: step_000006: rank_00000.safetensors has" in resumed.stdout + resumed.stderr
    for name, weight in weights(finished).items():
        assert torch.equal(weight, expected[name]), name

    # the same run goes on with other ranks under another ZeRO stage
    shutil.rmtree(newest)
    shutil.rmtree(finished / "model")
    elsewhere = train(tiny_config, "deepspeed.zero_optimization.stage=3", launcher=two_ranks())
    assert elsewhere.returncode == 0, elsewhere.stdout + elsewhere.stderr
    assert "resumed after step 3" in elsewhere.stdout
    for name, weight in weights(finished).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5)

    other = tmp_path / "two_ranks"
    result = train(tiny_config, f"output_dir={other}", launcher=two_ranks())
    assert result.returncode == 0 and not chatter(result), result.stdout + result.stderr
    for name, weight in weights(other).items():
        # the ranks' gradients are summed in another order than accumulated ones
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["python", pytest.param("deepspeed", marks=pytest.mark.long)])
def test_ctrl_c_leaves_a_run_that_the_same_command_resumes(tiny_config, tmp_path, launcher):
    num_tracebacks = int(
        launcher == "deepspeed"
    )  # its launcher lets its own KeyboardInterrupt through; ours must not add
    launcher = [sys.executable] if launcher == "python" else two_ranks()
    changes = ["training.validate_every_steps=0", "training.schedule=constant"]
    command = [*launcher, TRAIN, tiny_config, "training.steps=100000", *changes]
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: launcher and ranks alike
    rest, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert rest.count("Traceback") == num_tracebacks and "dydiff_dist/" not in rest.split("Traceback")[-1]
    assert "stopped by SIG" in rest and "the same command resumes" in rest, rest
    stopped = int(rest.split("after step ")[1].split(";")[0])
    assert (tmp_path / "run" / "checkpoints" / f"step_{stopped:06d}" / "complete.json").is_file()

    last = stopped + 2
    resumed = train(tiny_config, f"training.steps={last}", *changes, launcher=launcher)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed after step {stopped}" in resumed.stdout and f"step {last}/{last}" in resumed.stdout


@pytest.mark.long
@pytest.mark.distributed
def test_two_ranks_say_one_thing_about_one_mistake(tiny_config):
    result = train(tiny_config, "training.stpes=3", launcher=two_ranks())
    assert result.returncode != 0
    assert len(error_lines(result)) == 1 and "did you mean 'training.steps'?" in error_lines(result)[0]
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.long
@pytest.mark.distributed
def test_a_shard_damaged_inside_is_named_by_the_rank_that_meets_it(tiny_config, tiny_shards, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_shards / "train", damaged)
    shard = next(damaged.glob("*.tar"))
    data = bytearray(shard.read_bytes())
    for position in range(0, len(data), 4096):
        data[position] ^= 0xFF
    shard.write_bytes(data)
    start = time.monotonic()
    result = train(tiny_config, f"data.train={damaged}", launcher=two_ranks())
    assert result.returncode != 0
    assert 1 <= len(error_lines(result)) <= 2 and all(shard.name in line for line in error_lines(result))
    assert "Traceback" not in result.stderr
    assert time.monotonic() - start < 120, "the other rank was left waiting"


@pytest.mark.slow
def test_mistakes_in_the_data_are_one_line(tiny_config, tiny_shards, tmp_path):
    truncated = tmp_path / "truncated"
    shutil.copytree(tiny_shards / "train", truncated)
    shard = next(truncated.glob("*.tar"))
    os.truncate(shard, shard.stat().st_size // 2)
    for override, message in (
        (f"data.train={tmp_path / 'absent'}", "does not exist; make it with tools/make_shards.py"),
        (f"data.train={truncated}", f"{shard.name} is truncated"),
        ("data.num_future_frames=40", "num_future_frames"),
        ("model.patch_size=5", "model.patch_size 5 does not divide frames of 16x16"),
        ("training.num_validation_cases=50", "has 5 samples; lower it"),
        ("execution.attention_backend=xformers", "needs a GPU"),
        ("sampling.num_steps=2000", "sampling: num_steps is 2000; it must lie in 1..1000"),
    ):
        result = train(tiny_config, override)
        assert result.returncode == 2, (override, result.stdout, result.stderr)
        assert len(error_lines(result)) == 1 and message in error_lines(result)[0], result.stderr
        assert "Traceback" not in result.stderr


def test_dry_run_checks_and_stops(tiny_config, tmp_path):
    result = train(tiny_config, "--dry-run")
    assert result.returncode == 0, result.stderr
    for fact in ("24 samples of 2 + 4 frames", "parameters", "ZeRO stage 2", "2 accumulation x 1 ranks"):
        assert fact in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.distributed
def test_the_rate_of_damaged_samples_is_logged_with_its_rank(tiny_config, tiny_shards, tmp_path):
    """6 steps of 4 samples are one epoch: one rank meets the damaged sample, and has read 12 samples at the end."""
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_shards / "train", damaged)
    shard = next(damaged.glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[1000] ^= 0xFF
    shard.write_bytes(data)
    changes = ["data.damaged_samples=skip", "data.max_damaged_rate=0.5", f"data.train={damaged}"]
    result = train(tiny_config, *changes, launcher=TORCHRUN)
    assert result.returncode == 0, result.stdout + result.stderr

    shards = ShardSet.open(damaged)
    number = shards.manifest.shards.index(next(entry for entry in shards.manifest.shards if entry.name == shard.name))
    plan = SampleOrder(shards.manifest, RunConfig.model_fields["seed"].default, 2**30)
    (position,) = [n for n in range(len(shards)) if plan.address(n) == SampleAddress(number, 0)]
    rank, first_step = position % 4 // 2, position // 4 + 1
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    fractions = [event.value for event in events.Scalars("data/damaged_fraction")]
    expected = [0.0] * (first_step - 1) + [1 / (2 * step) for step in range(first_step, 7)]
    assert fractions == pytest.approx(expected, rel=1e-6)
    assert [event.value for event in events.Scalars("data/damaged_rank")] == [rank] * (7 - first_step)
    assert f"damaged samples {1 / 12:.2%} (rank {rank})" in result.stdout
