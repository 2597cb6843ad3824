"""Triton without a GPU: the interpreter against the reference, and what the compiler makes of each kernel.

The interpreter runs in a process of its own, because Triton reads TRITON_INTERPRET when it is imported: there the other
files of this folder are run again, with the Triton kernels as the backend.
"""

import csv
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels cannot be compiled in an interpreter process", allow_module_level=True)

from dydiff_kernels import aot
from dydiff_kernels.gpu import MAX_COLORED, AotCase

ROOT = Path(__file__).parents[2]
OPS = ("noise", "frame_mix", "add_noise", "denoising_loss", "reverse_step", "modulation", "attention_inputs")
OPS += ("short_attention", "training_curve", "op_registry", "launch_counter", "network_launches", "tables")
OP_TESTS = [f"test_{op}.py" for op in OPS]
with open(ROOT / "docs" / "kernel_resources.csv", newline="") as file:
    TABLE = {(row["kernel"], row["storage"], row["arch"]): row for row in csv.DictReader(file)}

# Scalars that a program loads on purpose: coefficients of its sample and their row, the sample index, the weight of a
# frame, of the sample, and its upstream gradient.
SCALARS = {"_normal_kernel": 1, "_frame_filter_kernel": 3, "_add_noise_kernel": 11, "_denoising_loss_kernel": 4}
SCALARS |= {"_reverse_step_kernel": 16, "_modulated_norm_backward_kernel": 2}
# The same of a case: beside them a row of the operator on the noise.
SCALARS |= {"add_noise_colored": 9 + 16, "reverse_step_colored": 10 + 16}
# Sums that a program stores: mean and deviation of a token, sums over columns.
SUMS = {"_modulated_norm_kernel": 2, "_attention_inputs_backward_kernel": 4, "_partial_sums_kernel": 2}
# The norms' weights, and sums over tokens.
SCALARS["_short_attention_backward_kernel"] = 16
SUMS["_short_attention_backward_kernel"] = 4
# The largest blocks: two registers of a thread.
SPILLS = {("short_attention_backward_32_tokens_128_channels", "fp32", "sm_90"): 8}
FAST = [("add_noise", "bf16", 90), ("loss_forward", "fp32", 80), ("reverse_step", "fp32", 90)]
FAST += [("modulated_norm_backward", "bf16", 90), ("attention_inputs_backward", "bf16", 80)]


def check(case: AotCase, storage: str, arch: int) -> None:
    row = aot.resources(case, storage, arch)
    assert row.spilled_bytes <= SPILLS.get((row.kernel, row.storage, row.arch), 0), f"{row} spills"
    kernel = case.kernel.__name__
    if kernel != "_partial_sums_kernel":  # which reads and writes few numbers
        assert bool(row.vector_loads) == bool(case.reads)
        assert bool(row.vector_stores) == bool(case.writes)
    assert row.scalar_loads <= SCALARS.get(case.name, SCALARS.get(kernel, 0)), (
        f"{row} reads tensors in less than 128 bits"
    )
    # a sum of the whole program, where it writes no tensor
    assert row.scalar_stores == SUMS.get(kernel, int(not case.writes)), f"{row} writes tensors in less than 128 bits"
    recorded = TABLE[row.kernel, row.storage, row.arch]
    if recorded["triton"] == row.triton:
        found = {name: str(value) for name, value in dataclasses.asdict(row).items()}
        assert found == recorded, "regenerate the table: python -m dydiff_kernels.aot docs/kernel_resources.csv"


@pytest.mark.long
def test_kernels_match_the_reference_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=0", *OP_TESTS]
    run = subprocess.run(
        command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) > 150 and "triton" in run.stdout


@pytest.mark.parametrize(("name", "storage", "arch"), FAST)
def test_main_kernels_compile_without_spills_or_scalar_access(name, storage, arch):
    check({case.name: case for case in aot.cases()}[name], storage, arch)


@pytest.mark.long
@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
@pytest.mark.parametrize("storage", aot.STORAGE)
@pytest.mark.parametrize("case", aot.cases(), ids=lambda case: case.name)
def test_every_kernel_compiles_without_spills_or_scalar_access(case, storage, arch):
    check(case, storage, arch)


@pytest.mark.long
@pytest.mark.parametrize("case", aot.cases(), ids=lambda case: case.name)
def test_launches_of_size_one_and_ragged_frames_compile(case):
    """Sizes of 1 become compile-time constants in a launch, which the interpreter does not show."""
    names = case.kernel.arg_names
    ones = {name: 1 for name in ("S", "R", "history_frames") if name in names}
    ragged = {"ALIGNED": False} if "ALIGNED" in names else {}
    for constants in (ones | ragged, ragged):
        compiled = aot.compile_case(case, "fp32", 90, **constants)
        assert aot._register_usage(compiled.asm["cubin"])[1] <= SPILLS.get((case.name, "fp32", "sm_90"), 0)


@pytest.mark.long
@pytest.mark.parametrize("frames", [32, 64])
@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
@pytest.mark.parametrize("name", ["add_noise_colored", "reverse_step_colored"])
def test_frames_that_an_operator_on_the_noise_holds_stay_in_registers(name, arch, frames):
    """In the blocks of a launch of so many frames; 16 are a case of the table."""
    case = {case.name: case for case in aot.cases()}[name]
    compiled = aot.compile_case(case, "fp32", arch, FRAMES=frames, BLOCK=MAX_COLORED // frames)
    assert aot._register_usage(compiled.asm["cubin"])[1] == 0


def test_table_is_complete():
    expected = {
        (case.name, storage, f"sm_{arch}")
        for case in aot.cases()
        for storage in aot.STORAGE
        for arch in aot.ARCHITECTURES
    }
    assert set(TABLE) == expected


def test_half_precision_is_rounded_to_nearest():
    """The interpreter truncates to bfloat16; the compiled kernels must not."""
    case = {case.name: case for case in aot.cases()}["frame_mix"]
    for storage, instruction in (("bf16", r"cvt\.rn\.bf16(x2)?\.f32"), ("fp16", r"cvt\.rn\.f16(x2)?\.f32")):
        assert re.search(instruction, aot.compile_case(case, storage, 90).asm["ptx"])
