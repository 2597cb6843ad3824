"""The choice of a backend: what auto takes, what it says, and what is refused."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dydiff_kernels import Levels, add_noise, available_backends, backends, frame_mix, registry
from dydiff_kernels.sources import sources_sha256

X, GAMMA = torch.ones(1, 2, 3), torch.ones(1)


@pytest.fixture
def log(caplog):
    """Messages of the kernels' logger, from a state where nothing was said yet."""
    registry._log_once.cache_clear()
    caplog.set_level(logging.INFO, logger="dydiff_kernels")
    yield caplog
    registry._log_once.cache_clear()


def load_again(monkeypatch):
    cpp, refusal = backends._load_cpp()
    monkeypatch.setattr(backends, "_cpu", cpp)
    monkeypatch.setattr(backends, "_cpu_refusal", refusal)


@pytest.fixture
def no_extension(monkeypatch):
    """As on a machine without a compiler."""
    monkeypatch.setitem(sys.modules, "dydiff_kernels._cpu", None)
    load_again(monkeypatch)


@pytest.mark.skipif(backends.cpp_module() is None, reason="the C++ extension is not built")
def test_auto_takes_cpp_and_says_so_once(log):
    frame_mix(X, GAMMA)
    frame_mix(X, GAMMA)
    assert [r.levelname for r in log.records] == ["INFO"]
    assert "frame_mix: runs on the cpp backend" in log.text and backends.cpp_module().isa() in log.text


def test_without_the_extension_auto_runs_the_reference_and_warns_once(log, no_extension):
    y = frame_mix(X, GAMMA)
    frame_mix(X, GAMMA)
    assert torch.equal(y, X) and available_backends()[-1] == "reference" and "cpp" not in available_backends()
    assert [r.levelname for r in log.records] == ["WARNING"]
    assert "frame_mix: the cpp kernel is refused" in log.text and "install a C++17 compiler" in log.text


def test_a_backend_asked_for_by_name_runs_or_fails(no_extension):
    with pytest.raises(ValueError, match=r"backend='cpp' cannot run here: .* install a C\+\+17 compiler"):
        frame_mix(X, GAMMA, backend="cpp")
    with pytest.raises(ValueError, match="backend='gpu' is unknown; use one of auto, triton, cpp, reference"):
        frame_mix(X, GAMMA, backend="gpu")


@pytest.mark.skipif(backends.cpp_module() is None, reason="the C++ extension is not built")
@pytest.mark.parametrize("built_from", ["other", None], ids=["other sources", "a version that did not say"])
def test_an_extension_of_other_sources_is_refused_and_says_what_to_do(log, monkeypatch, built_from):
    """As after git pull without a build: it may lack what Python asks for, or read a table otherwise."""
    if built_from:
        monkeypatch.setattr(backends.cpp_module(), "sources", built_from)
    else:
        monkeypatch.delattr(backends.cpp_module(), "sources")
    load_again(monkeypatch)
    assert torch.equal(frame_mix(X, GAMMA), X) and "cpp" not in available_backends()
    assert [r.levelname for r in log.records] == ["WARNING"] and "build them again (pip install -e .)" in log.text
    with pytest.raises(ValueError, match=r"frame_mix: backend='cpp' cannot run here: .* built from other sources"):
        frame_mix(X, GAMMA, backend="cpp")


def test_the_extension_that_these_tests_run_is_of_these_sources():
    """Without this the tests of a stale one would be skipped, as on a machine without a compiler."""
    assert "other sources" not in (backends.cpp_refusal(torch.device("cpu")) or "")


def test_the_digest_of_sources_is_that_of_every_path_and_byte(tmp_path):
    (tmp_path / "op").mkdir()
    assert sources_sha256(tmp_path) == ""  # an installed package has none
    found = set()
    for name, text in (("a.h", "1"), ("a.h", "2"), ("b.cpp", "2")):
        (tmp_path / "op" / name).write_text(text)
        found.add(sources_sha256(tmp_path))
    (tmp_path / "op" / "b.cpp").rename(tmp_path / "op" / "c.cpp")
    assert len(found | {sources_sha256(tmp_path)}) == 4


@pytest.mark.skipif("triton" in available_backends(), reason="Triton runs here (interpreter)")
def test_triton_on_the_cpu_is_an_error():
    with pytest.raises(ValueError, match="tensors are on cpu, the triton backend needs a CUDA device"):
        frame_mix(X, GAMMA, backend="triton")


def test_float64_goes_to_the_reference_and_says_so(log):
    for backend in ("auto", "cpp"):
        assert frame_mix(X.double(), GAMMA, backend=backend).dtype == torch.float64
    assert log.text.count("float64 tensors run on the torch reference") == 1


def test_gradients_of_ops_without_a_backward_kernel_run_the_reference_and_say_so_once(log):
    x, levels = X.clone().requires_grad_(), Levels(*[GAMMA] * 6)
    for _ in range(2):
        assert add_noise(x, levels, X).z.requires_grad
    assert [r.getMessage() for r in log.records] == [
        "add_noise: inputs that require a gradient run on the torch reference"
    ]


@pytest.mark.slow
def test_build_without_a_compiler_goes_on_and_says_what_that_means(tmp_path):
    command = [
        sys.executable,
        "setup.py",
        "build",
        "--build-base",
        str(tmp_path),
        "egg_info",
        "--egg-base",
        str(tmp_path),
    ]
    environment = {"PATH": "/usr/bin:/bin", "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert (
        "the C++ kernels were not built" in run.stderr + run.stdout and "apt-get install g++" in run.stderr + run.stdout
    )
