"""Frames shared between ranks: the whole network is exact in float64, forward and all gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sequence_parallel_worker import CASES

from dydiff_dist.models.sequence_parallel import SequenceGroup, check_sequence_parallel

WORKER = Path(__file__).with_name("sequence_parallel_worker.py")


@pytest.mark.distributed
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_shared_frames_equal_all_frames_on_one_rank(num_ranks):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, str(WORKER)], capture_output=True, text=True, timeout=180, env=environment)
    done = [line for line in result.stdout.splitlines() if line.startswith("sequence ok")]
    assert result.returncode == 0 and len(done) == len(CASES), result.stdout + result.stderr


def test_one_rank_communicates_nothing():
    x = torch.randn(2, 4, 6, 8)
    sequence = SequenceGroup()
    for same in (sequence.local(x, 1), sequence.gather(x), sequence.to_heads(x), sequence.to_tokens(x)):
        assert same is x


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_frames": 15, "num_heads": 4}, "does not divide the 15 frames; change it or data.num_history_frames"),
        ({"num_frames": 12, "num_heads": 3}, "does not divide the 3 attention heads; change it or model.num_heads"),
    ],
)
def test_what_does_not_divide_is_named(sizes, message):
    check_sequence_parallel(1, **sizes)
    with pytest.raises(ValueError, match=f"execution.sequence_parallel_size 2 {message}"):
        check_sequence_parallel(2, **sizes)
