"""``add_noise`` in Triton (formulas in ``reference.py`` and csrc/add_noise.h)."""

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from dydiff_kernels.frame_mix.triton_kernel import mix_frame
from dydiff_kernels.gpu import (
    coefficient_table,
    contiguous,
    contiguous_room,
    deliver,
    launch_shape,
    noise_arguments,
    offset_in_sample,
    program_block,
)
from dydiff_kernels.noise.triton_kernel import noise_block

if TYPE_CHECKING:
    from dydiff_kernels.add_noise import AddNoiseRequest, NoisedLatents

EPS, V, X0 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
PREDICTION_CODES = {"eps": 0, "v": 1, "x0": 2}
_WORDS = [f"{prefix}_{word}" for prefix in ("noise", "posterior") for word in ("key0", "key1", "step", "stream")]


@triton.jit(do_not_specialize=[*_WORDS, "scale"])
def _add_noise_kernel(
    x_ptr,
    logvar_ptr,
    posterior_ptr,
    posterior_index_ptr,
    posterior_key0,
    posterior_key1,
    posterior_step,
    posterior_stream,
    scale,
    noise_ptr,
    noise_index_ptr,
    noise_key0,
    noise_key1,
    noise_step,
    noise_stream,
    table_ptr,
    z_ptr,
    target_ptr,
    x0_ptr,
    S,
    R,
    PREDICTION: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One block of one sample, frame by frame: (posterior sample), μ, ε̃, z, target."""
    b, start, r = program_block(R, BLOCK)
    mask = r < R
    row = table_ptr + 6 * b
    signal, spread, keep, carry = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    noise_keep, noise_carry = tl.load(row + 4), tl.load(row + 5)
    mean = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK], tl.float32)
    for s in range(S):
        offset = (b * S + s) * R + r
        x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if logvar_ptr is not None:
            n = noise_block(
                posterior_ptr, posterior_index_ptr, posterior_key0, posterior_key1, posterior_step, posterior_stream,
                b, offset, offset_in_sample(s, R, start), mask, BLOCK, ALIGNED,
            )  # fmt: skip
            logvar = tl.load(logvar_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            x = scale * (x + tl.exp(0.5 * logvar) * n)
        mean = mix_frame(s, keep, carry, x, mean)
        noise = noise_block(
            noise_ptr, noise_index_ptr, noise_key0, noise_key1, noise_step, noise_stream,
            b, offset, offset_in_sample(s, R, start), mask, BLOCK, ALIGNED,
        )  # fmt: skip
        mixed = mix_frame(s, noise_keep, noise_carry, noise, mixed)
        z = signal * mean + spread * mixed
        tl.store(z_ptr + offset, z.to(z_ptr.dtype.element_ty), mask=mask)
        if target_ptr is not None:
            if PREDICTION == EPS:
                target = mixed
            elif PREDICTION == V:
                target = signal * mixed - spread * mean
            else:
                target = x
            tl.store(target_ptr + offset, target.to(target_ptr.dtype.element_ty), mask=mask)
        if x0_ptr is not None:
            tl.store(x0_ptr + offset, x.to(x0_ptr.dtype.element_ty), mask=mask)


def add_noise(request: "AddNoiseRequest", results: "NoisedLatents") -> None:
    """Fills ``results`` on the latents' device."""
    x = request.latents
    if not x.numel():
        return
    written = [None if result is x else result for result in results]
    rooms = [contiguous_room(result) for result in written]
    grid, sizes = launch_shape(x)
    posterior = noise_arguments(request.posterior_noise, x.device, "posterior")
    _add_noise_kernel[grid](
        x_ptr=contiguous(x),
        logvar_ptr=contiguous(request.logvar),
        scale=request.scale,
        table_ptr=coefficient_table(request.coefficients(), x.device),
        **dict(zip(("z_ptr", "target_ptr", "x0_ptr"), rooms, strict=True)),
        PREDICTION=PREDICTION_CODES[request.prediction],
        ALIGNED=x.shape[2:].numel() % 4 == 0,
        **posterior,
        **noise_arguments(request.noise, x.device),
        **sizes,
    )
    for room, result in zip(rooms, written, strict=True):
        deliver(room, result)
