"""The counter of launches counts what runs on a device, once, and nothing else."""

import pytest
import torch
from kernel_cases import levels, random_tensor

from dydiff_kernels import frame_mix

pytest.importorskip("triton", reason="triton is not installed")
from launch_counter import count_launches


def test_torch_operations_count_and_views_do_not():
    x = torch.ones(4, 6, requires_grad=True)
    with count_launches() as launches:
        y = x.transpose(0, 1)[:3].reshape(-1)  # a view, and the copy that reshaping it takes
        torch.empty_like(y)
        (2 * y).sum().backward()
    assert launches.triton == []
    assert [name for name in launches.torch if "clone" in name or "copy" in name]
    assert "mul" in " ".join(launches.torch) and "sum" in launches.torch
    assert not {"transpose", "slice", "empty_like", "view", "detach", "expand"} & set(launches.torch)


def test_a_triton_kernel_counts_once(backend):
    """Whatever the interpreter does to run it."""
    if backend != "triton":
        pytest.skip("needs the Triton backend")
    x, gamma_bar = random_tensor((2, 3, 16)), levels(2)
    with count_launches() as launches:
        frame_mix(x, gamma_bar, backend="triton")
    assert launches.triton == ["_frame_filter_kernel"]
    assert len(launches) == 1 + len(launches.torch)
