"""One small network trained under every ZeRO stage, on 1 and 2 ranks, with and without accumulation, recomputation,
offloading and a batch that is passed over: the same losses and gradient norms.

float32 differs by the order of sums only: 4 steps of Adam on a loss near 1 stay within 2e-6. bf16 and fp16 store
activations and gradients with 8 and 11 bits, and the gradients of ranks and micro-batches are summed in them, so runs
differ from float32, and from each other, by less than half a unit of the last bit of a loss near 1.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_commands import environment

WORKER = Path(__file__).with_name("parity_worker.py")
FP32_TOLERANCE = 2e-6
HALF_TOLERANCE = {"bf16": 2**-9, "fp16": 2**-12}
FP32_CASES = {
    1: "0 2 3:acc:recompute 1:offload 3:offload_param",
    2: "0:acc 1:recompute 2:acc 3 2:offload:acc 3:offload:recompute",
}
BAD_CASES = {1: "0:bad:acc 2:bad", 2: "0:bad 1:bad:acc 2:bad:acc 3:bad 2:offload:bad 3:offload:bad"}
HALF_CASES = {1: "2:bf16", 2: "1:bf16 3:bf16:acc 2:fp16 3:fp16"}


def train(num_ranks: int, cases: str) -> dict[str, dict]:
    """Results of all cases on so many ranks, by case."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
    command = [*launch, str(WORKER), *cases.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment())
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and len(results) == len(cases.split()), done.stdout + done.stderr[-4000:]
    return {result["case"]: result for result in results}


@pytest.fixture(scope="module")
def results() -> dict[int, dict[str, dict]]:
    """By number of ranks, then by case; one start of the processes for all cases of a number of ranks."""
    return {ranks: train(ranks, f"{FP32_CASES[ranks]} {BAD_CASES[ranks]} {HALF_CASES[ranks]}") for ranks in (1, 2)}


def of_group(results: dict, group: dict[int, str]) -> dict[str, dict]:
    return {f"{ranks} ranks, {case}": results[ranks][case] for ranks in group for case in group[ranks].split()}


@pytest.mark.long
@pytest.mark.distributed
def test_stages_ranks_accumulation_and_offloading_give_one_training(results):
    expected = results[1]["0"]
    assert expected["losses"][-1] < 0.9 * expected["losses"][0], "it does not learn"
    assert max(expected["norms"]) > 0.5, "clipping is not at work"
    for case, result in of_group(results, FP32_CASES).items():
        assert result["losses"] == pytest.approx(expected["losses"], abs=FP32_TOLERANCE), case
        assert result["norms"] == pytest.approx(expected["norms"], abs=FP32_TOLERANCE), case
        assert result["lags"] == pytest.approx(expected["lags"], abs=FP32_TOLERANCE), case
    assert expected["lags"]["ema"] > 1.5 * expected["lags"]["ema_0.2"], "the averages are of one decay"


@pytest.mark.long
@pytest.mark.distributed
def test_a_batch_passed_over_leaves_no_trace(results):
    expected = results[1]["0"]
    for case, result in of_group(results, BAD_CASES).items():
        assert result["losses"] == pytest.approx(expected["losses"], abs=FP32_TOLERANCE), case
        assert result["norms"] == pytest.approx(expected["norms"], abs=FP32_TOLERANCE), case
        assert result["lags"] == pytest.approx(expected["lags"], abs=FP32_TOLERANCE), case


@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_float32(results, precision):
    found = {case: each for case, each in of_group(results, HALF_CASES).items() if precision in case}
    assert found
    for case, result in found.items():
        assert result["losses"] == pytest.approx(results[1]["0"]["losses"], abs=HALF_TOLERANCE[precision]), case
        assert result["losses"] != results[1]["0"]["losses"], f"{case} is not of half precision"
