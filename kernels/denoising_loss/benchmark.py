"""``denoising_loss`` in the benchmark, forward and backward; the gradient is new memory in every variant."""

import torch
from torch import Tensor

from dydiff_kernels.benchmark.cases import BenchmarkCase, Inputs
from dydiff_kernels.denoising_loss import denoising_loss
from dydiff_kernels.denoising_loss.reference import denoising_loss_reference


def _eager(i: Inputs, parameters: None) -> Tensor | None:
    output = i.x.detach().requires_grad_()
    weights = torch.full(output.shape[:2], 1.0 / output[0].numel(), device=output.device)
    denoising_loss_reference(output, i.y, weights).mean().backward()
    return output.grad


def _kernel(i: Inputs, parameters: None, backend: str) -> Tensor | None:
    output = i.x.detach().requires_grad_()
    denoising_loss(output, i.y, backend=backend).mean().backward()
    return output.grad


BENCHMARKS = [BenchmarkCase("denoising_loss", 5, lambda shape, dtype, device: None, _eager, _kernel)]
