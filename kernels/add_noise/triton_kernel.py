"""``add_noise`` in Triton (formulas in ``reference.py``)."""

from typing import Any

import triton
import triton.language as tl

from dydiff_kernels.add_noise import operands
from dydiff_kernels.frame_mix.triton_kernel import mix_frame
from dydiff_kernels.gpu import AotCase, launch, offset_in_sample, program_block, table_row
from dydiff_kernels.noise.triton_kernel import color_frame, noise_block

_WORDS = [f"{prefix}_{word}" for prefix in ("noise", "posterior_noise") for word in ("key0", "key1", "step", "stream")]


@triton.jit(do_not_specialize=[*_WORDS, "scale", "coefficients_row"])
def _add_noise_kernel(
    latents_ptr, logvar_ptr, posterior_noise_ptr, posterior_noise_index_ptr,
    posterior_noise_key0, posterior_noise_key1, posterior_noise_step, posterior_noise_stream, scale,
    noise_ptr, noise_index_ptr, noise_key0, noise_key1, noise_step, noise_stream, noise_operator_ptr,
    coefficients_ptr, coefficients_index_ptr, coefficients_row, z_ptr, target_ptr, x0_ptr, S, R,
    MIXES_TARGET: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, FRAMES: tl.constexpr,
):  # fmt: skip
    """One block of one sample, frame by frame: (posterior sample), A x, B ε, z, target."""
    b, start, r = program_block(R, BLOCK)
    mask = r < R
    row = coefficients_ptr + 8 * table_row(coefficients_index_ptr, coefficients_row, b)
    signal, spread, target_noise, target_signal = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    keep, carry, noise_keep, noise_carry = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    mean = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK], tl.float32)
    white = tl.zeros([FRAMES, BLOCK], tl.float32)
    for s in range(S):
        offset = (b * S + s) * R + r
        x = tl.load(latents_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if logvar_ptr is not None:
            n = noise_block(
                posterior_noise_ptr, posterior_noise_index_ptr, posterior_noise_key0, posterior_noise_key1,
                posterior_noise_step, posterior_noise_stream, b, offset, offset_in_sample(s, R, start), mask,
                BLOCK, ALIGNED,
            )  # fmt: skip
            logvar = tl.load(logvar_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            x = scale * (x + tl.exp(0.5 * logvar) * n)
        mean = mix_frame(s, keep, carry, x, mean)
        noise = noise_block(
            noise_ptr, noise_index_ptr, noise_key0, noise_key1, noise_step, noise_stream,
            b, offset, offset_in_sample(s, R, start), mask, BLOCK, ALIGNED,
        )  # fmt: skip
        if noise_operator_ptr is not None:
            noise, white = color_frame(s, S, noise, white, noise_operator_ptr, FRAMES)
        mixed = mix_frame(s, noise_keep, noise_carry, noise, mixed)
        z = signal * mean + spread * mixed
        tl.store(z_ptr + offset, z.to(z_ptr.dtype.element_ty), mask=mask)
        if target_ptr is not None:
            if MIXES_TARGET:
                target = target_noise * mixed + target_signal * mean
            else:
                target = target_noise * noise + target_signal * x
            tl.store(target_ptr + offset, target.to(target_ptr.dtype.element_ty), mask=mask)
        if x0_ptr is not None:
            tl.store(x0_ptr + offset, x.to(x0_ptr.dtype.element_ty), mask=mask)


def add_noise(*arguments: Any) -> None:
    """Takes the arguments of ``add_noise_reference`` and the list of results to write."""
    launch(_add_noise_kernel, operands(*arguments))


def _case(
    name: str, reads: tuple[str, ...], writes: tuple[str, ...], scalars: tuple[str, ...], mixes=True, frames=1
) -> AotCase:
    constants = dict(MIXES_TARGET=mixes, ALIGNED=True, FRAMES=frames)
    return AotCase(name, _add_noise_kernel, reads, writes, ("coefficients_ptr", *scalars), constants, floats=("scale",))


_Z_TARGET = ("z_ptr", "target_ptr")
_DRAWN = ("noise_index_ptr",)
AOT_CASES = [
    _case("add_noise", ("latents_ptr",), _Z_TARGET, _DRAWN),
    _case("add_noise_rows", ("latents_ptr",), _Z_TARGET, (*_DRAWN, "coefficients_index_ptr")),
    _case("add_noise_unmixed", ("latents_ptr",), _Z_TARGET, _DRAWN, mixes=False),
    _case("add_noise_colored", ("latents_ptr",), _Z_TARGET, (*_DRAWN, "noise_operator_ptr"), frames=16),
    _case("add_noise_given", ("latents_ptr", "noise_ptr"), _Z_TARGET, ()),
    _case(
        "add_noise_posterior",
        ("latents_ptr", "logvar_ptr"),
        (*_Z_TARGET, "x0_ptr"),
        (*_DRAWN, "posterior_noise_index_ptr"),
    ),
]
