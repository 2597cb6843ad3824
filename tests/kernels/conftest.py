"""Kernel tests: every op on every backend that can run here, with all fresh memory poisoned.

The backends are the C++ kernels once per instruction set of this processor; in a process started with
TRITON_INTERPRET=1 they are the Triton kernels instead (test_triton_kernels.py starts one, since Triton reads the
variable when it is imported).
"""

import os

import pytest
import torch

from dydiff_kernels import backends

if os.environ.get("TRITON_INTERPRET") == "1":
    BACKENDS_HERE = ["triton"]
elif backends.cpp_module() is not None:
    BACKENDS_HERE = [f"cpp-{isa}" for isa in backends.cpp_module().available_isas()]
else:
    BACKENDS_HERE = [pytest.param("cpp", marks=pytest.mark.skip(reason="the C++ extension is not built"))]


@pytest.fixture(params=BACKENDS_HERE)
def backend(request):
    """Name of a kernel backend; for the C++ one its instruction set is selected while the test runs."""
    name, _, isa = request.param.partition("-")
    if isa:
        backends.cpp_module().set_isa(isa)
        request.addfinalizer(lambda: backends.cpp_module().set_isa(backends.cpp_module().available_isas()[0]))
    return name


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fresh tensors hold NaN, so an element that a kernel forgets to write fails the comparison."""
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    with torch.device("meta"):  # torch gathers what makes tensors once, and not among what is patched here
        torch.zeros(0)
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poisoned(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poisoned(empty_like(*args, **kwargs)))


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and threads that wait for each other on a busy machine cost seconds.

    test_threads.py runs the parallel loops."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
