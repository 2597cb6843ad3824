"""What is timed: per op the eager torch a user would write, and the kernel, on the same inputs.

Eager code is the op's reference on float32 with ``torch.randn`` for noise: a loop over frames, all else
vectorised.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from dydiff_kernels import (
    NoiseCounter,
    NoisedLatents,
    ReverseStep,
    StepCoefficients,
    add_noise,
    denoising_loss,
    frame_mix,
    gated_residual,
    modulated_norm,
    reverse_step,
)
from dydiff_kernels.add_noise.reference import add_noise_reference
from dydiff_kernels.denoising_loss.reference import denoising_loss_reference
from dydiff_kernels.frame_mix.reference import frame_mix_reference
from dydiff_kernels.reverse_step.reference import estimate_x0_reference, reverse_step_reference

SIZES = {
    "turbulence": (16, 15, 2, 64, 64),
    "robonet": (16, 12, 3, 64, 64),
    "sevir": (16, 13, 1, 128, 128),
    "large": (16, 32, 4, 128, 128),
}
"""(B, S, C, H, W): the three data sets' configurations, and one of 33.5 million elements."""

TOKEN_SIZES = {
    "turbulence": (8, 15, 16, 128),
    "robonet": (16, 12, 64, 384),
    "sevir": (16, 13, 64, 768),
    "large": (8, 32, 128, 1024),
}
"""(B, S, N, D): tokens of a network for the same data, for the operations between its layers."""


@dataclass(frozen=True)
class Inputs:
    """One set of tensors of one shape, and memory for results; the sets rotate."""

    x: torch.Tensor
    y: torch.Tensor
    room: torch.Tensor
    room2: torch.Tensor


@dataclass(frozen=True)
class Levels:
    """Per-sample levels (B,) float64 of one step from t to t', and the same on the device for eager code."""

    alpha_bar: torch.Tensor
    gamma_bar: torch.Tensor
    step: StepCoefficients
    counter: NoiseCounter
    conditions: tuple[torch.Tensor, ...]
    """Shift, scale and gate of a token's frame, (B, S, 1, D) each, as chunks of a linear layer's output."""


@dataclass(frozen=True)
class Op:
    """One op: how many bytes an element costs at least, and its variants. ``ours`` reuses memory for its results."""

    tensors_moved: int
    """Reads and writes of a tensor that the op cannot do without; bytes = tensors_moved · N · bytes per element."""
    eager: Callable[[Inputs, Levels], object]
    ours: Callable[[Inputs, Levels, str], object]
    ours_fresh: Callable[[Inputs, Levels, str], object]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=lambda: SIZES)
    """Shape by the name of the size."""


def make_levels(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Levels:
    """Levels in the middle of the schedules, different for every sample; the step is DDIM with η = 0.5."""
    batch = shape[0]
    ramp = torch.linspace(0, 1, max(2, batch), dtype=torch.float64, device=device)[:batch]
    alpha_bar, gamma_bar = 0.2 + 0.5 * ramp, 0.5 + 0.4 * ramp
    alpha_next, gamma_next = 0.3 + 0.5 * ramp, 0.55 + 0.4 * ramp
    sigma = 0.5 * ((1 - alpha_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_next)).sqrt()
    a = ((1 - alpha_next - sigma**2) / (1 - alpha_bar)).sqrt()
    b = alpha_next.sqrt() - a * alpha_bar.sqrt()
    step = StepCoefficients(alpha_bar, gamma_bar, gamma_next, a, b, torch.zeros_like(a), sigma)
    counter = NoiseCounter(1, torch.arange(batch, device=device), 0)
    generator = torch.Generator(device).manual_seed(0)
    conditions = torch.randn(batch, shape[1], 1, 3 * shape[-1], generator=generator, device=device).to(dtype)
    return Levels(alpha_bar, gamma_bar, step, counter, conditions.chunk(3, dim=-1))


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Random x and y, and memory that has been written to once, so that no page is new."""
    generator = torch.Generator(device).manual_seed(seed)
    x, y = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
    return Inputs(x, y, x.clone(), x.clone())


def _eager_add_noise(i: Inputs, k: Levels):
    noise = torch.randn(i.x.shape, device=i.x.device)
    z, target = add_noise_reference(i.x.float(), k.alpha_bar, k.gamma_bar, noise, "v", True)
    return z.to(i.x.dtype), target.to(i.x.dtype)


def _eager_loss(i: Inputs, k: Levels):
    output = i.x.detach().requires_grad_()
    weights = torch.full(output.shape[:2], 1.0 / output[0].numel(), device=output.device)
    denoising_loss_reference(output, i.y, weights).mean().backward()
    return output.grad


def _eager_step(i: Inputs, k: Levels, with_noise: bool):
    z, output = i.x.float(), i.y.float()
    noise = torch.randn(z.shape, device=z.device) if with_noise else None
    x0 = estimate_x0_reference(z, output, k.step, "v", None)
    return reverse_step_reference(z, x0, k.step, True, noise, None).to(i.x.dtype)


def _our_loss(i: Inputs, k: Levels, backend: str):
    output = i.x.detach().requires_grad_()
    denoising_loss(output, i.y, backend=backend).mean().backward()
    return output.grad


def _our_step(i: Inputs, k: Levels, backend: str, with_noise: bool, out: ReverseStep | None):
    step = k.step if with_noise else StepCoefficients(*[getattr(k.step, f) for f in _DETERMINISTIC])
    noise = k.counter if with_noise else None
    return reverse_step(i.x, i.y, step, prediction="v", noise=noise, out=out, backend=backend)


def _differentiate(op: Callable, tensors: list[torch.Tensor], upstream: torch.Tensor, **options) -> torch.Tensor:
    """Forward and backward through every tensor; returns the gradient of the first."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    torch.autograd.backward(op(*leaves, **options), upstream)
    return leaves[0].grad


def _modulate(i: Inputs, k: Levels, backend: str) -> torch.Tensor:
    return _differentiate(modulated_norm, [i.x, *k.conditions[:2]], i.y, backend=_adaln_backend(backend))


def _gate(i: Inputs, k: Levels, backend: str) -> torch.Tensor:
    """The gradient of the branch: that of x is the upstream gradient itself."""
    swapped = lambda branch, gate, x, backend: gated_residual(x, gate, branch, backend=backend)  # noqa: E731
    return _differentiate(swapped, [i.y, k.conditions[2], i.x], i.room, backend=_adaln_backend(backend))


def _adaln_backend(backend: str) -> str:
    """adaLN has no Triton kernel; there torch's own operations are what runs."""
    return "auto" if backend == "triton" else backend


_DETERMINISTIC = ("alpha_bar", "gamma_bar", "gamma_bar_next", "a", "b")


def _noising(i: Inputs, k: Levels, backend: str, out: NoisedLatents | None):
    return add_noise(i.x, k.alpha_bar, k.gamma_bar, k.counter, prediction="v", out=out, backend=backend)


OPS = {
    "frame_mix": Op(
        2,
        lambda i, k: frame_mix_reference(i.x, k.gamma_bar),
        lambda i, k, backend: frame_mix(i.room, k.gamma_bar, backend=backend, inplace=True),
        lambda i, k, backend: frame_mix(i.x, k.gamma_bar, backend=backend),
    ),
    "add_noise": Op(
        3,
        _eager_add_noise,
        lambda i, k, backend: _noising(i, k, backend, NoisedLatents(i.room, i.room2, None)),
        lambda i, k, backend: _noising(i, k, backend, None),
    ),
    "denoising_loss": Op(5, _eager_loss, _our_loss, _our_loss),
    "reverse_step": Op(
        3,
        lambda i, k: _eager_step(i, k, with_noise=False),
        lambda i, k, backend: _our_step(i, k, backend, False, ReverseStep(i.room, None)),
        lambda i, k, backend: _our_step(i, k, backend, False, None),
    ),
    "reverse_step_noise": Op(
        3,
        lambda i, k: _eager_step(i, k, with_noise=True),
        lambda i, k, backend: _our_step(i, k, backend, True, ReverseStep(i.room, None)),
        lambda i, k, backend: _our_step(i, k, backend, True, None),
    ),
    "modulated_norm": Op(5, lambda i, k: _modulate(i, k, "reference"), _modulate, _modulate, TOKEN_SIZES),
    "gated_residual": Op(6, lambda i, k: _gate(i, k, "reference"), _gate, _gate, TOKEN_SIZES),
}
"""``denoising_loss``, ``modulated_norm`` and ``gated_residual`` are forward and backward; gradients are new memory in
every variant, as autograd has it."""


def check(op: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, backend: str) -> None:
    """Refuses to go on with a kernel that disagrees with its reference, on two samples of the given frame size.

    Raises:
        RuntimeError: naming op, shape and the largest difference.
    """
    shape = (min(2, shape[0]), *shape[1:])
    inputs, levels = make_inputs(shape, dtype, device, seed=0), make_levels(shape, dtype, device)
    actual, expected = OPS[op].ours_fresh(inputs, levels, backend), OPS[op].ours_fresh(inputs, levels, "reference")
    pairs = [(actual, expected)] if isinstance(actual, torch.Tensor) else zip(actual, expected, strict=True)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}[dtype]
    for one, other in pairs:
        if one is None:
            continue
        error = (one.float() - other.float()).abs().max() / other.float().std()
        if not error <= tolerance:  # also catches NaN
            raise RuntimeError(
                f"{op} {shape} on {backend} is wrong by {error:.2e} (tolerance {tolerance:.0e}); not timed"
            )
