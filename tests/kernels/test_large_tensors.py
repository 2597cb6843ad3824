"""Offsets beyond 31 bits: frames more than 2³¹ elements apart, in memory that is reserved but hardly touched."""

import numpy as np
import pytest
import torch
from kernel_cases import levels, random_tensor

from dydiff_kernels import backends, denoising_loss, frame_mix, frame_unmix

FAR = 2**31 + 2**20


@pytest.mark.skipif(backends.cpp_module() is None, reason="the C++ extension is not built")
def test_frames_far_apart():
    try:
        memory = torch.from_numpy(np.empty(FAR + 4096, dtype=np.float16))
    except MemoryError:
        pytest.skip("4 GiB of address space are not to be had")
    x = memory.as_strided((1, 2, 1031), (1, FAR, 1))
    values = random_tensor((1, 2, 1031), torch.float16)
    for op in (frame_mix, frame_unmix):
        x.copy_(values)
        expected = op(values, levels(1), backend="cpp")
        assert torch.equal(op(x, levels(1), backend="cpp"), expected)
        op(x, levels(1), backend="cpp", inplace=True)
        assert torch.equal(x, expected)


@pytest.mark.slow
@pytest.mark.skipif(backends.cpp_module() is None, reason="the C++ extension is not built")
def test_more_than_two_to_the_31_elements():
    """One frame seen 2049 times: 2.1 billion elements through the loss, whose mean is that of the frame."""
    frame, target = random_tensor((1, 1, 2**20)), random_tensor((1, 1, 2**20), seed=1)
    seen = [x.expand(1, 2049, 2**20) for x in (frame, target)]
    torch.testing.assert_close(denoising_loss(*seen), denoising_loss(frame, target), rtol=1e-5, atol=0)
