"""``reverse_step`` in Triton (formulas in csrc/reverse_step.h)."""

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from dydiff_kernels.frame_mix.triton_kernel import mix_frame, unmix_frame
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
    from dydiff_kernels.reverse_step import ReverseStep, ReverseStepRequest


@triton.jit
def _guided_output(output_ptr, uncond_ptr, offset, mask, guidance):
    """uncond + w·(output - uncond), or the output where there is no unconditional branch."""
    out = tl.load(output_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if uncond_ptr is not None:
        uncond = tl.load(uncond_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        out = uncond + guidance * (out - uncond)
    return out


@triton.jit(do_not_specialize=["noise_key0", "noise_key1", "noise_step", "noise_stream"])
def _reverse_step_kernel(
    z_ptr,
    output_ptr,
    uncond_ptr,
    x0_prev_ptr,
    history_ptr,
    noise_ptr,
    noise_index_ptr,
    noise_key0,
    noise_key1,
    noise_step,
    noise_stream,
    table_ptr,
    z_next_ptr,
    x0_ptr,
    history_frames,
    S,
    R,
    IS_X0: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One block of one sample, frame by frame: guidance, x̂, clamp, combination, η-noise, mixing."""
    b, start, r = program_block(R, BLOCK)
    mask = r < R
    row = table_ptr + 11 * b
    guidance, from_z, from_output = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    keep, carry, next_keep, next_carry = tl.load(row + 3), tl.load(row + 4), tl.load(row + 9), tl.load(row + 10)
    factor_a, factor_b, factor_c, sigma = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7), tl.load(row + 8)
    inverse_keep = 1.0 / keep
    z_before = tl.zeros([BLOCK], tl.float32)
    mean_before = tl.zeros([BLOCK], tl.float32)
    next_mixed = tl.zeros([BLOCK], tl.float32)
    x0_mixed = tl.zeros([BLOCK], tl.float32)
    for s in range(S):
        offset = (b * S + s) * R + r
        z = tl.load(z_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        x0 = _guided_output(output_ptr, uncond_ptr, offset, mask, guidance)
        if not IS_X0:
            mean = from_z * z + from_output * x0
            x0 = unmix_frame(s, inverse_keep, carry, mean, mean_before)
            mean_before = mean
        if history_ptr is not None:
            known = r < tl.where(s < history_frames, R, 0)
            history = tl.load(history_ptr + (b * history_frames + s) * R + r, mask=known, other=0.0).to(tl.float32)
            x0 = tl.where(known, history, x0)
        if DEPENDENT:
            total = factor_a * unmix_frame(s, inverse_keep, carry, z, z_before) + factor_b * x0
            z_before = z
        else:
            next_mixed = mix_frame(s, next_keep, next_carry, x0, next_mixed)
            x0_mixed = mix_frame(s, keep, carry, x0, x0_mixed)
            total = factor_a * z + factor_b * next_mixed + factor_c * x0_mixed
        if x0_prev_ptr is not None:
            total += factor_c * tl.load(x0_prev_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        if (noise_ptr is not None) or (noise_index_ptr is not None):
            total += sigma * noise_block(
                noise_ptr, noise_index_ptr, noise_key0, noise_key1, noise_step, noise_stream,
                b, offset, offset_in_sample(s, R, start), mask, BLOCK, ALIGNED,
            )  # fmt: skip
        if DEPENDENT:
            next_mixed = mix_frame(s, next_keep, next_carry, total, next_mixed)
            total = next_mixed
        tl.store(z_next_ptr + offset, total.to(z_next_ptr.dtype.element_ty), mask=mask)
        if x0_ptr is not None:
            tl.store(x0_ptr + offset, x0.to(x0_ptr.dtype.element_ty), mask=mask)


def reverse_step(request: "ReverseStepRequest", results: "ReverseStep") -> None:
    """Fills ``results`` on z's device."""
    z = request.z
    if not z.numel():
        return
    rooms = [contiguous_room(result) for result in results]
    grid, sizes = launch_shape(z)
    _reverse_step_kernel[grid](
        z_ptr=contiguous(z),
        output_ptr=contiguous(request.output),
        uncond_ptr=contiguous(request.uncond_output),
        x0_prev_ptr=contiguous(request.x0_prev),
        history_ptr=contiguous(request.history),
        table_ptr=coefficient_table(request.columns(), z.device),
        z_next_ptr=rooms[0],
        x0_ptr=rooms[1],
        history_frames=0 if request.history is None else request.history.shape[1],
        IS_X0=request.prediction == "x0",
        DEPENDENT=request.dependent_noise,
        ALIGNED=z.shape[2:].numel() % 4 == 0,
        **noise_arguments(request.noise, z.device),
        **sizes,
    )
    for room, result in zip(rooms, results, strict=True):
        deliver(room, result)
