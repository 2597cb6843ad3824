"""Checkpoints of real engines: resuming is exact to the bit, and any ranks under any ZeRO stage read them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_commands import environment

from dydiff_dist.checkpoints import folder as checkpoint_folder

WORKER = Path(__file__).with_name("checkpoint_worker.py")
STAGES = ("0", "1", "2", "3")


def work(num_ranks: int, jobs: list[dict]) -> None:
    """Does ``jobs`` one after the other on so many ranks; the worker checks what it finds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
    texts = [json.dumps(job) for job in jobs]
    result = subprocess.run(
        [*command, str(WORKER), *texts], capture_output=True, text=True, timeout=240, env=environment()
    )
    done = [line.removeprefix("ok ") for line in result.stdout.splitlines() if line.startswith("ok ")]
    assert done == texts, result.stdout + result.stderr[-4000:]


def write(target: Path, stage: str, precision: str = "fp32") -> dict:
    return {"target": str(target), "stage": stage, "precision": precision}


def convert(source: Path, target: Path, stage: str, precision: str = "fp32") -> dict:
    return {"source": str(source), **write(target, stage, precision)}


@pytest.mark.long
@pytest.mark.distributed
def test_resuming_is_exact_on_any_ranks_under_any_stage(tmp_path):
    """Two ranks train, save and resume under every stage; what they saved goes 2 -> 1 -> 3 -> 2 ranks and through other
    stages; all values stay what they were."""
    fp32, bf16 = (*STAGES, "2-offload", "3-offload"), ("1", "2", "3")
    two = [write(tmp_path / s, s) for s in fp32] + [write(tmp_path / f"bf16-{s}", s, "bf16") for s in bf16]
    work(2, two)

    pairs = [(s, t) for s in STAGES for t in STAGES] + [("2-offload", "3"), ("3-offload", "2"), ("1", "3-offload")]
    one = [convert(tmp_path / s, tmp_path / f"{s}-{t}", t) for s, t in pairs]
    one += [convert(tmp_path / f"bf16-{s}", tmp_path / f"bf16-{s}-3", "3", "bf16") for s in bf16]
    work(1, one + [write(tmp_path / f"one-{s}", s) for s in fp32])

    pairs = [("0", "3"), ("1", "0"), ("2", "1"), ("3", "2"), ("2-offload", "3"), ("3-offload", "2"), ("1", "3-offload")]
    work(3, [convert(tmp_path / f"{s}-{t}", tmp_path / f"{s}-{t}-{s}", s) for s, t in pairs])

    two = [convert(tmp_path / f"{s}-{t}-{s}", tmp_path / f"{s}-{t}-{s}-{t}", t) for s, t in pairs]
    work(2, two + [convert(tmp_path / f"bf16-{s}-3", tmp_path / f"bf16-{s}-3-1", "1", "bf16") for s in bf16])

    # the files really are shards: three ranks wrote three, none of them much more than a third of the elements
    facts = checkpoint_folder.read_facts(tmp_path / "1-0-1" / "step_000003")
    sizes = [facts["bytes"][checkpoint_folder.rank_file(rank)] for rank in range(3)]
    assert facts["world_size"] == 3 and max(sizes) < 0.5 * sum(sizes), sizes
