"""``reverse_step`` in Triton (formulas of ``StepCoefficients``)."""

from typing import Any

import triton
import triton.language as tl

from dydiff_kernels.frame_mix.triton_kernel import mix_frame, unmix_frame
from dydiff_kernels.gpu import AotCase, launch, offset_in_sample, program_block, table_row
from dydiff_kernels.noise.triton_kernel import color_frame, noise_block
from dydiff_kernels.reverse_step import operands


@triton.jit(do_not_specialize=["noise_key0", "noise_key1", "noise_step", "noise_stream", "coefficients_row"])
def _reverse_step_kernel(
    z_ptr, output_ptr, x0_prev_ptr, history_ptr,
    noise_ptr, noise_index_ptr, noise_key0, noise_key1, noise_step, noise_stream, noise_operator_ptr,
    coefficients_ptr, coefficients_index_ptr, coefficients_row, z_next_ptr, x0_ptr, history_frames, S, R,
    MIXES_OUTPUT: tl.constexpr, SHARES_OPERATORS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
    FRAMES: tl.constexpr,
):  # fmt: skip
    """One block of one sample, frame by frame: x̂, its history, and both parts of z'."""
    b, start, r = program_block(R, BLOCK)
    mask = r < R
    row = coefficients_ptr + 15 * table_row(coefficients_index_ptr, coefficients_row, b)
    from_z, from_output, signal, clean_factor = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    previous_factor, kept_noise, sigma = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6)
    keep, carry, next_keep, next_carry = tl.load(row + 7), tl.load(row + 8), tl.load(row + 9), tl.load(row + 10)
    inverse_keep = 1.0 / keep
    z_before = tl.zeros([BLOCK], tl.float32)
    mean_before = tl.zeros([BLOCK], tl.float32)
    next_clean = tl.zeros([BLOCK], tl.float32)
    fresh = tl.zeros([FRAMES, BLOCK], tl.float32)
    if not SHARES_OPERATORS:
        noise_keep, noise_carry = tl.load(row + 11), tl.load(row + 12)
        next_noise_keep, next_noise_carry = tl.load(row + 13), tl.load(row + 14)
        inverse_noise_keep = 1.0 / noise_keep
        mixed_x0 = tl.zeros([BLOCK], tl.float32)
        n_before = tl.zeros([BLOCK], tl.float32)
        next_noise = tl.zeros([BLOCK], tl.float32)
    for s in range(S):
        offset = (b * S + s) * R + r
        z = tl.load(z_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        output = tl.load(output_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if SHARES_OPERATORS:
            white = unmix_frame(s, inverse_keep, carry, z, z_before)
            z_before = z
        if MIXES_OUTPUT:
            mean = from_z * z + from_output * output
            x0 = unmix_frame(s, inverse_keep, carry, mean, mean_before)
            mean_before = mean
        elif SHARES_OPERATORS:
            x0 = from_z * white + from_output * output
        else:
            x0 = from_output * output  # from_z is 0
        if history_ptr is not None:
            known = r < tl.where(s < history_frames, R, 0)
            history = tl.load(history_ptr + (b * history_frames + s) * R + r, mask=known, other=0.0).to(tl.float32)
            x0 = tl.where(known, history, x0)
        if not SHARES_OPERATORS:
            mixed_x0 = mix_frame(s, keep, carry, x0, mixed_x0)
            n = z - signal * mixed_x0
            white = unmix_frame(s, inverse_noise_keep, noise_carry, n, n_before)
            n_before = n
        white = kept_noise * white
        if (noise_ptr is not None) or (noise_index_ptr is not None):
            noise = noise_block(
                noise_ptr, noise_index_ptr, noise_key0, noise_key1, noise_step, noise_stream,
                b, offset, offset_in_sample(s, R, start), mask, BLOCK, ALIGNED,
            )  # fmt: skip
            if noise_operator_ptr is not None:
                noise, fresh = color_frame(s, S, noise, fresh, noise_operator_ptr, FRAMES)
            white += sigma * noise
        clean = clean_factor * x0
        if x0_prev_ptr is not None:
            clean += previous_factor * tl.load(x0_prev_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if SHARES_OPERATORS:
            next_clean = mix_frame(s, next_keep, next_carry, clean + white, next_clean)
            z_next = next_clean
        else:
            next_clean = mix_frame(s, next_keep, next_carry, clean, next_clean)
            next_noise = mix_frame(s, next_noise_keep, next_noise_carry, white, next_noise)
            z_next = next_clean + next_noise
        tl.store(z_next_ptr + offset, z_next.to(z_next_ptr.dtype.element_ty), mask=mask)
        if x0_ptr is not None:
            tl.store(x0_ptr + offset, x0.to(x0_ptr.dtype.element_ty), mask=mask)


def reverse_step(*arguments: Any) -> None:
    """Takes the arguments of ``reverse_step_reference`` and the list of results to write."""
    launch(_reverse_step_kernel, operands(*arguments))


def _case(
    name: str, reads: tuple[str, ...] = (), writes: tuple[str, ...] = (), *, noise: tuple[str, ...] = (),
    mixes: bool = True, shared: bool = True, frames: int = 1,
) -> AotCase:  # fmt: skip
    """``reads`` and ``writes``: what is present beside z, output and z'; ``noise``: what its name has in memory."""
    scalars = ("coefficients_ptr", *noise)
    constants = dict(MIXES_OUTPUT=mixes, SHARES_OPERATORS=shared, ALIGNED=True, FRAMES=frames)
    reads, writes = ("z_ptr", "output_ptr", *reads), ("z_next_ptr", *writes)
    return AotCase(name, _reverse_step_kernel, reads, writes, scalars, constants)


_BOTH, _X0 = ("x0_prev_ptr", "history_ptr"), ("x0_ptr",)
_DRAWN = ("noise_index_ptr",)
AOT_CASES = [
    _case("reverse_step"),
    _case("reverse_step_unmixed", mixes=False),
    _case("reverse_step_noise", noise=_DRAWN),
    _case("reverse_step_noise_recorded", noise=(*_DRAWN, "noise_key0", "noise_key1", "noise_step")),
    _case("reverse_step_colored", noise=(*_DRAWN, "noise_operator_ptr"), frames=16),
    _case("reverse_step_multistep", ("x0_prev_ptr",), _X0),
    _case("reverse_step_full", _BOTH, _X0, noise=_DRAWN),
    _case("reverse_step_separate", shared=False),
    _case("reverse_step_separate_unmixed", ("history_ptr",), mixes=False, shared=False),
    _case("reverse_step_separate_full", _BOTH, _X0, noise=_DRAWN, shared=False),
]
