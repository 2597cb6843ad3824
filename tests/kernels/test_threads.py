"""Results do not depend on the number of threads, bit for bit; sizes here are large enough for two threads to share."""

import pytest
import torch
from kernel_cases import counter, levels, random_levels, random_operator, random_tensor

from dydiff_kernels import StepCoefficients, add_noise, backends, denoising_loss, frame_mix, normal, reverse_step

SHAPE = (2, 3, 20_000)
LEVELS = levels(2)


def gradient():
    output = random_tensor(SHAPE).requires_grad_()
    denoising_loss(output, random_tensor(SHAPE, seed=1)).sum().backward()
    return output.grad


def step(**more):
    names = ("frame_gamma", "next_frame_gamma", "from_z", "from_output", "signal", "clean", "kept_noise")
    return StepCoefficients(**dict.fromkeys(names, LEVELS), **more)


OPS = {
    "normal": lambda: normal(counter(2), SHAPE),
    "frame_mix": lambda: frame_mix(random_tensor(SHAPE), LEVELS),
    "add_noise": lambda: add_noise(random_tensor(SHAPE), random_levels(2), counter(2)).z,
    "add_noise, colored": lambda: (
        add_noise(random_tensor(SHAPE), random_levels(2), counter(2), noise_operator=random_operator(3)).z
    ),
    "reverse_step, colored": lambda: (
        reverse_step(
            random_tensor(SHAPE),
            random_tensor(SHAPE),
            step(sigma=LEVELS),
            noise=counter(2),
            noise_operator=random_operator(3),
        ).z
    ),
    "denoising_loss": lambda: denoising_loss(random_tensor(SHAPE), random_tensor(SHAPE, seed=1)),
    "denoising_loss gradient": gradient,
    "reverse_step": lambda: reverse_step(random_tensor(SHAPE), random_tensor(SHAPE), step()).z,
    "reverse_step, separate": lambda: (
        reverse_step(random_tensor(SHAPE), random_tensor(SHAPE), step(noise_gamma=LEVELS, next_noise_gamma=LEVELS)).z
    ),
}


@pytest.mark.skipif(backends.cpp_module() is None, reason="the C++ extension is not built")
@pytest.mark.parametrize("op", OPS)
def test_threads_do_not_change_results(op):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(OPS[op]())
    assert torch.equal(*results)
