// Philox4x32-10 (Salmon et al., SC 2011) and Box–Muller normals, W counters at a time.
//
// Counter (docs/agreements.md, agreement 2): c0 = element / 4, c1 = step, c2 and c3 = sample index and stream. Each of
// the four output words belongs to one element, so W counters make 4·W consecutive normals.
#pragma once
#include "args.h"

namespace dydiff {
namespace DYDIFF_ISA {

constexpr int NORMALS_PER_CALL = 4 * W;

// The part of key and counter that all elements of a sample share.
struct SampleCounter {
    uint32_t key0, key1, step, index_low, index_high_and_stream;
};

inline SampleCounter sample_counter(const NoiseSource& noise, int64_t b) {
    const uint64_t index = uint64_t(noise.index(b));
    return {uint32_t(noise.seed), uint32_t(noise.seed >> 32), noise.step, uint32_t(index),
            uint32_t(index >> 32) | (noise.stream << 24)};
}

// Which counter each 32-bit lane takes, such that transposing quads of lanes leaves the normals in element order. Even
// and odd lanes go through the rounds apart, one to a 64-bit lane, because that is where 32×32-bit products fit.
struct LaneCounters {
    alignas(64) uint64_t even[W / 2] = {}, odd[W / 2] = {};
    constexpr LaneCounters() {
        for (int lane = 0; lane < W; ++lane) (lane % 2 ? odd : even)[lane / 2] = uint64_t((W / 4) * (lane % 4) + lane / 4);
    }
};
inline constexpr LaneCounters LANE_COUNTERS;

inline VecU64 splat64(uint64_t value) { return VecU64{} + value; }

// Ten rounds on W/2 counters. The upper half of each 64-bit lane is left dirty: products read the low half only.
inline void philox_rounds(const SampleCounter& counter, VecU64 c[4]) {
    const VecU64 multiplier0 = splat64(0xD2511F53u), multiplier1 = splat64(0xCD9E8D57u);
    uint32_t key0 = counter.key0, key1 = counter.key1;
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const VecU64 product0 = multiply_low_words(c[0], multiplier0);
        const VecU64 product1 = multiply_low_words(c[2], multiplier1);
        c[0] = (product1 >> 32) ^ c[1] ^ splat64(key0);
        c[1] = product1;
        c[2] = (product0 >> 32) ^ c[3] ^ splat64(key1);
        c[3] = product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// Words of the W counters from `block` on: words[j] holds word j, in the lane order of LANE_COUNTERS.
inline void philox_words(const SampleCounter& counter, uint32_t block, VecU words[4]) {
    VecU64 even[4], odd[4];
    std::memcpy(&even[0], LANE_COUNTERS.even, sizeof(VecU64));
    std::memcpy(&odd[0], LANE_COUNTERS.odd, sizeof(VecU64));
    even[0] += block;
    odd[0] += block;
    even[1] = odd[1] = splat64(counter.step);
    even[2] = odd[2] = splat64(counter.index_low);
    even[3] = odd[3] = splat64(counter.index_high_and_stream);
    philox_rounds(counter, even);
    philox_rounds(counter, odd);
    for (int j = 0; j < 4; ++j) words[j] = (VecU)((even[j] & 0xFFFFFFFFu) | (odd[j] << 32));
}

// (x + ½)·2⁻³² rounded once to float: the high 16 bits are exact and so is the low part, only their sum rounds.
inline VecF to_uniform(VecU x) {
    const VecF high = __builtin_convertvector((VecI)(x >> 16), VecF);
    const VecF low = __builtin_convertvector((VecI)(x & 0xFFFFu), VecF);
    return high * 0x1p-16f + (low * 0x1p-32f + 0x1p-33f);
}

// ln u for normal floats u in (0, 1]: u = m·2ᵉ with m in [√½, √2), f = m - 1, ln m = f - f²/2 + f³P(f).
inline VecF natural_log(VecF u) {
    const VecI bits = (VecI)u;
    const VecI exponent = (bits - 0x3F3504F3) >> 23;
    const VecF f = (VecF)(bits - (exponent << 23)) - 1.0f;
    // Minimax fit; relative error of the logarithm 6e-9.
    VecF p = fused_multiply_add(VecF{} - 0.0785954595f, f, VecF{} + 0.128816217f);
    p = fused_multiply_add(p, f, VecF{} - 0.131287679f);
    p = fused_multiply_add(p, f, VecF{} + 0.141811967f);
    p = fused_multiply_add(p, f, VecF{} - 0.166245535f);
    p = fused_multiply_add(p, f, VecF{} + 0.200022861f);
    p = fused_multiply_add(p, f, VecF{} - 0.250008106f);
    p = fused_multiply_add(p, f, VecF{} + 0.333333164f);
    const VecF f2 = f * f;
    const VecF log_m = f + fused_multiply_add(f * p, f2, f2 * -0.5f);
    return fused_multiply_add(__builtin_convertvector(exponent, VecF), VecF{} + 0.693147182f, log_m);
}

// cos 2πu and sin 2πu for u in (0, 1]: u = q/4 + f with |f| ≤ ⅛, both exact; polynomials in f², then the quadrant q.
inline void cos_sin_turns(VecF u, VecF& cosine, VecF& sine) {
    const VecF shifter = VecF{} + 12582912.0f;  // 1.5·2²³: adding it rounds to an integer and leaves that in the low bits
    const VecF shifted = u * 4.0f + shifter;
    const VecU quadrant = (VecU)shifted;
    const VecF f = u - (shifted - shifter) * 0.25f;
    const VecF f2 = f * f;
    VecF s = fused_multiply_add(VecF{} - 75.4020691f, f2, VecF{} + 81.5925522f);  // minimax fits, error below 3e-9
    s = fused_multiply_add(s, f2, VecF{} - 41.3416634f);
    s = fused_multiply_add(s, f2, VecF{} + 6.28318548f) * f;
    VecF c = fused_multiply_add(VecF{} + 59.2204056f, f2, VecF{} - 85.4428558f);
    c = fused_multiply_add(c, f2, VecF{} + 64.9393158f);
    c = fused_multiply_add(c, f2, VecF{} - 19.7392082f);
    c = fused_multiply_add(c, f2, VecF{} + 1.0f);
    const VecI odd = -(VecI)(quadrant & 1u);  // all bits set where sine and cosine change places
    const VecU cosine_sign = ((quadrant + 1u) & 2u) << 30, sine_sign = (quadrant & 2u) << 30;
    cosine = (VecF)((VecU)(odd ? s : c) ^ cosine_sign);
    sine = (VecF)((VecU)(odd ? c : s) ^ sine_sign);
}

// 4·W normals, elements 4·block onwards: r = √(-2 ln u₀), r cos 2πu₁ and r sin 2πu₁ of the word pairs (0, 1) and (2, 3).
inline void store_normals(const SampleCounter& counter, uint32_t block, float* out) {
    VecU words[4];
    philox_words(counter, block, words);
    VecF n[4];
    for (int pair = 0; pair < 2; ++pair) {
        const VecF radius = square_root(natural_log(to_uniform(words[2 * pair])) * -2.0f);
        VecF cosine, sine;
        cos_sin_turns(to_uniform(words[2 * pair + 1]), cosine, sine);
        n[2 * pair] = radius * cosine;
        n[2 * pair + 1] = radius * sine;
    }
    transpose_quads(n[0], n[1], n[2], n[3]);
    for (int j = 0; j < 4; ++j) std::memcpy(out + j * W, &n[j], sizeof(VecF));
}

// Normals of elements [first, first + n) of a sample. `buffer` takes n + NORMALS_PER_CALL + 3; the result points into it.
inline const float* fill_normals(const SampleCounter& counter, int64_t first, int64_t n, float* buffer) {
    const int64_t skip = first % 4;
    uint32_t block = uint32_t(first / 4);
    for (int64_t done = 0; done < n + skip; done += NORMALS_PER_CALL, block += W) store_normals(counter, block, buffer + done);
    return buffer + skip;
}

}  // namespace DYDIFF_ISA
}  // namespace dydiff
