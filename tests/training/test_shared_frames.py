"""A whole run in which two ranks share the frames of each sample takes the same steps as the run of one rank."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_commands import TORCHRUN, TRAIN, run
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dydiff_dist.ranks.world import World


def train(config, out, *changes, launcher=(sys.executable,)):
    return run([*launcher, TRAIN, config, f"output_dir={out}", "training.validate_every_steps=0", *changes])


def logged(folder: Path, name: str) -> list[float]:
    """A scalar of every step, in the float32 that TensorBoard stores."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [event.value for event in events.Scalars(name)]


@pytest.mark.long
@pytest.mark.distributed
def test_a_run_with_shared_frames_equals_the_run_of_one_rank(tiny_config, tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    changes = ["execution.sequence_parallel_size=2", "execution.checkpoint_fraction=1.0"]
    results = [train(tiny_config, whole), train(tiny_config, shared, *changes, launcher=TORCHRUN)]
    for result in results:
        assert result.returncode == 0, result.stdout + result.stderr
    assert "1 groups of 2 ranks that share frames" in results[1].stdout
    # float32 sums in another order. The norm shows a gradient of the wrong scale, to which AdamW is blind.
    for name in ("loss/train", "optimizer/gradient_norm"):
        expected, actual = logged(whole, name), logged(shared, name)
        assert len(expected) == 6
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)  # before any weight has moved
    expected = load_file(whole / "model" / "model.safetensors")
    for key, weight in load_file(shared / "model" / "model.safetensors").items():
        # AdamW divides a gradient by its size, so that of a weight with next to none moves by rounding: here within a
        # thousandth of a step of the learning rate, 1e-2
        torch.testing.assert_close(weight, expected[key], atol=1e-5, rtol=0)


def world(rank: int) -> World:
    return World(rank=rank, world_size=6, local_rank=rank, local_world_size=6, device=torch.device("cpu"))


def test_ranks_that_share_samples_are_neighbours():
    assert [world(rank).with_ranks_per_sample(3).replica for rank in range(6)] == [0, 0, 0, 1, 1, 1]
    assert world(5).with_ranks_per_sample(3).num_replicas == 2


def test_ranks_that_cannot_be_grouped_are_refused():
    with pytest.raises(ValueError, match=r"6 ranks can.t be grouped by execution.sequence_parallel_size 4"):
        world(0).with_ranks_per_sample(4)
