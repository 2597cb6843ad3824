"""The registry: what an op of another package takes, and that it gets what this package's ops have."""

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import DTYPES, SHAPE_IDS, SHAPES, assert_matches, non_contiguous, random_tensor

from dydiff_kernels import register_op, registry

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def outside(monkeypatch):
    """The module ``outside_op``, whose op is registered while the test runs."""
    monkeypatch.setattr(registry, "_OPS", dict(registry._OPS))
    registry._log_once.cache_clear()
    yield importlib.import_module("outside_op")
    sys.modules.pop("outside_op")
    registry._log_once.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_an_outside_op_runs_its_own_kernel(outside, shape, dtype):
    x = random_tensor(shape, dtype)
    backend = "triton" if INTERPRETED else "auto"
    assert_matches(outside.doubled(x, backend=backend), x + x)
    if len(shape) > 2:
        for view in non_contiguous(x):
            assert_matches(outside.doubled(view, backend=backend), view + view)


def test_an_outside_op_is_dispatched_and_logged_as_any_other(outside, caplog):
    caplog.set_level(logging.INFO, logger="dydiff_kernels")
    x = torch.ones(1, 2, 3)
    for _ in range(2):
        outside.doubled(x)
        outside.doubled(x.double())
    leaf = x.clone().requires_grad_()
    outside.doubled(leaf).sum().backward()
    assert torch.equal(leaf.grad, 2 * x)
    assert [record.getMessage() for record in caplog.records] == [
        "doubled: runs on the reference backend, device cpu",
        "doubled: float64 tensors run on the torch reference (kernels calculate in float32)",
        "doubled: inputs that require a gradient run on the torch reference",
    ]
    with pytest.raises(ValueError, match="doubled: backend='cpp' has no kernel of this op; use backend='auto'"):
        outside.doubled(x, backend="cpp")
    if not INTERPRETED:
        with pytest.raises(ValueError, match="doubled: backend='triton' cannot run here: tensors are on cpu"):
            outside.doubled(x, backend="triton")


def test_a_cpu_kernel_is_any_function(outside):
    op = register_op("halved", reference=lambda x: x / 2, cpp=lambda x: x * 0.5, differentiable=True)
    x = torch.ones(1, 2, 3)
    assert torch.equal(op.select("auto", [x])(x), x / 2)
    assert op.select("reference", [x]) is op.reference
    with pytest.raises(ValueError, match="an op named 'halved' is there already"):
        register_op("halved", reference=lambda x: x / 2)


@pytest.mark.skipif(INTERPRETED, reason="kernels cannot be compiled in an interpreter process")
def test_an_outside_op_is_compiled_ahead_of_time(outside):
    pytest.importorskip("triton", reason="triton is not installed")
    from dydiff_kernels import aot

    case = {case.name: case for case in aot.cases()}["doubled"]
    row = aot.resources(case, "bf16", 90)
    assert row.spilled_bytes == 0 and row.vector_loads and not row.scalar_loads


def test_an_outside_op_is_a_case_of_the_benchmark(outside):
    from dydiff_kernels.benchmark import cases

    case = cases.all_cases()["doubled"]
    cases.check(case, (2, 3, 1, 8, 8), torch.float32, torch.device("cpu"))


@pytest.mark.slow
def test_the_command_line_times_an_outside_op(tmp_path):
    tool = str(HERE.parents[1] / "tools" / "bench_kernels.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, tool, "--import", "outside_op", "--op", "doubled", "--size", "turbulence", "--quick"]
    run = subprocess.run(
        [*command, "--output", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    rows = (tmp_path / "kernels.csv").read_text().splitlines()
    assert [row.split(",")[4] for row in rows[1:]] == ["copy", "eager", "ours (new memory)"]
    assert all(row.startswith("doubled,turbulence,16x15x2x64x64,float32,") for row in rows[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_benchmark_allows_one_step_of_the_storage_type_and_no_more(dtype):
    """A large value's step is beyond a tolerance that only knows the spread of all values."""
    from dydiff_kernels.benchmark import cases

    def check(steps):
        def kernel(i, _, backend):
            out = torch.where(i.x.abs() == i.x.abs().max(), 64.0, i.x.float()).to(dtype)
            off = out * (1 + (0 if backend == "reference" else steps) * torch.finfo(dtype).eps)
            return torch.where(out == 64, off, out)

        case = cases.BenchmarkCase("off", 2, lambda *_: None, lambda i, _: i.x, kernel)
        cases.check(case, (2, 3, 1, 8, 8), dtype, torch.device("cpu"))

    for steps in (0, 1):
        check(steps)
    with pytest.raises(RuntimeError, match=r"off .* is wrong by .* where the value is 6\.40e\+01 .*; not timed"):
        check(2)
