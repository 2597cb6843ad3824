"""Normals in Triton: a kernel that writes them, and the device functions with which other kernels draw them.

Logarithm, cosine and sine are polynomials, the same as in csrc/philox.h: the hardware's approximate logarithm is off by
1e-7 absolutely, which near u = 1 costs a radius of 1e-3 three digits.
"""

import torch
import triton
import triton.language as tl

from dydiff_kernels.counter import NoiseCounter
from dydiff_kernels.gpu import AotCase, launch, program_block
from dydiff_kernels.registry import Operands


@triton.jit
def _to_uniform(x):
    """(x + ½)·2⁻³² rounded once: high and low halves are exact, only their sum rounds."""
    high = (x >> 16).to(tl.int32).to(tl.float32)
    low = (x & 0xFFFF).to(tl.int32).to(tl.float32)
    return high * 1.52587890625e-05 + (low * 2.3283064365386963e-10 + 1.1641532182693481e-10)


@triton.jit
def _natural_log(u):
    """ln u for u in (0, 1]: u = m·2ᵉ, m in [√½, √2), f = m - 1, ln m = f - f²/2 + f³P(f)."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f, tl.full(f.shape, -0.0785954595, tl.float32), 0.128816217)
    p = tl.fma(p, f, -0.131287679)
    p = tl.fma(p, f, 0.141811967)
    p = tl.fma(p, f, -0.166245535)
    p = tl.fma(p, f, 0.200022861)
    p = tl.fma(p, f, -0.250008106)
    p = tl.fma(p, f, 0.333333164)
    f2 = f * f
    log_m = f + tl.fma(f * p, f2, f2 * -0.5)
    return tl.fma(exponent.to(tl.float32), tl.full(f.shape, 0.693147182, tl.float32), log_m)


@triton.jit
def _cos_sin_turns(u):
    """cos 2πu and sin 2πu: u = q/4 + f, |f| ≤ ⅛, both exact; polynomials in f², then the quadrant q."""
    shifted = u * 4.0 + 12582912.0  # 1.5·2²³ rounds to an integer and leaves it in the low bits
    quadrant = shifted.to(tl.int32, bitcast=True)
    f = u - (shifted - 12582912.0) * 0.25
    f2 = f * f
    s = tl.fma(f2, tl.full(f.shape, -75.4020691, tl.float32), 81.5925522)
    s = tl.fma(s, f2, -41.3416634)
    s = tl.fma(s, f2, 6.28318548) * f
    c = tl.fma(f2, tl.full(f.shape, 59.2204056, tl.float32), -85.4428558)
    c = tl.fma(c, f2, 64.9393158)
    c = tl.fma(c, f2, -19.7392082)
    c = tl.fma(c, f2, 1.0)
    odd = (quadrant & 1) != 0
    cosine = tl.where(odd, s, c)
    sine = tl.where(odd, c, s)
    cosine = tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    return cosine, sine


@triton.jit
def _normal_pair(word0, word1):
    """Box–Muller: r cos 2πu₁ and r sin 2πu₁ with r = √(-2 ln u₀)."""
    radius = tl.sqrt_rn(_natural_log(_to_uniform(word0)) * -2.0)
    cosine, sine = _cos_sin_turns(_to_uniform(word1))
    return radius * cosine, radius * sine


@triton.jit
def _word(word):
    """A word of a counter: a number, or the one that lies in memory."""
    if word.dtype.is_ptr():
        word = tl.load(word)
    return word.to(tl.uint32)


@triton.jit
def _philox_words(block, index, key0, key1, step, stream):
    """Four output words per counter; ``block`` is c0 (any integer type), ``index`` the sample index (int64 scalar)."""
    c0 = block.to(tl.uint32)
    zero = c0 * 0
    c1 = zero + _word(step)
    c2 = zero + (index & 0xFFFFFFFF).to(tl.uint32)
    c3 = zero + ((index >> 32).to(tl.uint32) | (stream.to(tl.uint32) << 24))
    return tl.philox_impl(c0, c1, c2, c3, zero + _word(key0), zero + _word(key1))


@triton.jit
def draw_normals(index, key0, key1, step, stream, first, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    """Normals of elements [first, first + BLOCK) of a sample, [BLOCK] float32.

    ALIGNED: ``first`` is a multiple of 4, so each counter serves four neighbours. Else every element runs its own
    counter and takes its word: four times the work, for frames whose size is no multiple of 4.
    """
    if ALIGNED:
        block = first // 4 + tl.arange(0, BLOCK // 4)
        w0, w1, w2, w3 = _philox_words(block, index, key0, key1, step, stream)
        n0, n1 = _normal_pair(w0, w1)
        n2, n3 = _normal_pair(w2, w3)
        normals = tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
    else:
        element = first + tl.arange(0, BLOCK)
        w0, w1, w2, w3 = _philox_words(element // 4, index, key0, key1, step, stream)
        upper_pair = (element & 2) != 0
        cosine, sine = _normal_pair(tl.where(upper_pair, w2, w0), tl.where(upper_pair, w3, w1))
        normals = tl.where((element & 1) != 0, sine, cosine)
    return normals


@triton.jit
def noise_block(
    noise_ptr, index_ptr, key0, key1, step, stream, b, offset, first, mask, BLOCK: tl.constexpr, ALIGNED: tl.constexpr
):
    """Noise of a block [BLOCK] float32: loaded where ``noise_ptr`` is given, else drawn from the counter."""
    if noise_ptr is not None:
        noise = tl.load(noise_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    else:
        noise = draw_normals(tl.load(index_ptr + b), key0, key1, step, stream, first, BLOCK, ALIGNED)
    return noise


@triton.jit
def color_frame(s, S, noise, white, operator_ptr, FRAMES: tl.constexpr):
    """Frame s of L ε [BLOCK], and ε up to that frame [FRAMES, BLOCK], which the next frame needs.

    ``noise`` is frame s of ε, ``white`` what came back for the frame before, ``operator_ptr`` L (S, S) float32. A
    column's frames stay in registers, and L's rows are read by all columns.
    """
    frame = tl.arange(0, FRAMES)
    white = tl.where(frame[:, None] == s, noise[None, :], white)
    row = tl.load(operator_ptr + s * S + frame, mask=frame <= s, other=0.0)
    return tl.sum(row[:, None] * white, 0), white


@triton.jit(do_not_specialize=["noise_key0", "noise_key1", "noise_step", "noise_stream"])
def _normal_kernel(
    out_ptr, noise_ptr, noise_index_ptr, noise_key0, noise_key1, noise_step, noise_stream, S, R,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Writes the normals of one block of one sample; S is 1."""
    b, first, r = program_block(R, BLOCK)
    index = tl.load(noise_index_ptr + b)
    n = draw_normals(index, noise_key0, noise_key1, noise_step, noise_stream, first, BLOCK, ALIGNED)
    tl.store(out_ptr + b * S * R + r, n.to(out_ptr.dtype.element_ty), mask=r < R)


def normal(counter: NoiseCounter, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Normals of ``shape`` (B, *sample_shape) on the counter's device."""
    out = torch.empty(shape, dtype=dtype, device=counter.sample_index.device)
    samples = out.view(shape[0], 1, torch.Size(shape[1:]).numel())
    launch(_normal_kernel, Operands(samples, dict(out=samples), dict(noise=counter)))
    return out


AOT_CASES = [AotCase("normal", _normal_kernel, (), ("out_ptr",), ("noise_index_ptr",), dict(ALIGNED=True))]
