"""The sharded EMA equals the average one process would keep, under every ZeRO stage and number of ranks."""

import subprocess
import sys
from pathlib import Path

import pytest

from dydiff_dist.engine.ema import decay_at

WORKER = Path(__file__).with_name("ema_worker.py")
CASES = ["0:fp32", "1:fp32", "2:fp32", "3:fp32", "1:bf16", "2:bf16", "3:bf16"]


@pytest.mark.distributed
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_sharded_ema_equals_whole_ema(num_ranks):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
    result = subprocess.run([*command, str(WORKER), *CASES], capture_output=True, text=True, timeout=180)
    done = [line for line in result.stdout.splitlines() if line.startswith("ema ok")]
    assert len(done) == len(CASES), result.stdout + result.stderr


def test_decay_grows_to_its_limit():
    assert decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert decay_at(10**6, 0.999) == 0.999
