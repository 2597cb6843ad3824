// The Dynamics operator along frames, its inverse, and both transposes (arXiv 2503.00951). With k = √γ, c = √(1-γ):
//   mix               y⁰ = x⁰,   yˢ = k xˢ + c yˢ⁻¹
//   unmix             x⁰ = y⁰,   xˢ = (yˢ - c yˢ⁻¹) / k
//   mix transposed    aˢ = gˢ + c aˢ⁺¹,            hˢ = k aˢ,  h⁰ = a⁰
//   unmix transposed  aˢ = gˢ / k,  a⁰ = g⁰,       hˢ = aˢ - c aˢ⁺¹
// Each frame is read before it is written, so input and output may be the same memory.
#pragma once
#include "rows.h"

namespace dydiff {

enum class FrameFilter : int { mix = 0, unmix = 1, mix_transposed = 2, unmix_transposed = 3 };

struct FrameFilterArgs {
    Shape shape;
    int kind = 0;                // a FrameFilter
    uintptr_t coefficients = 0;  // const FrameFilterCoefficients*, one per sample
    FrameView x, out;            // may be the same

    template <class Visit>
    static void members(Visit visit) {
        visit("shape", &FrameFilterArgs::shape);
        visit("kind", &FrameFilterArgs::kind);
        visit("coefficients", &FrameFilterArgs::coefficients);
        visit("x", &FrameFilterArgs::x);
        visit("out", &FrameFilterArgs::out);
    }
};

// k and c.
struct FrameFilterCoefficients {
    float keep, carry;
};

namespace DYDIFF_ISA {

// state = keep·x + carry·state; the first frame is taken as it is.
inline void mix_row(bool first_frame, float keep, float carry, const float* __restrict x, float* __restrict state,
                    int64_t n) {
    if (first_frame) {
        std::memcpy(state, x, sizeof(float) * size_t(n));
        return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) state[i] = keep * x[i] + carry * state[i];
}

// out = (x - carry·before) / keep, before = x; the first frame is taken as it is.
inline void unmix_row(bool first_frame, float keep, float carry, const float* __restrict x, float* __restrict before,
                      float* __restrict out, int64_t n) {
    const float scale = first_frame ? 1.0f : 1.0f / keep, carried = first_frame ? 0.0f : carry;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        out[i] = (x[i] - carried * before[i]) * scale;
        before[i] = x[i];
    }
}

// One frame of any filter; `state` carries what the next frame needs.
inline void filter_row(FrameFilter kind, bool first_frame, float keep, float carry, const float* __restrict x,
                       float* __restrict state, float* __restrict out, int64_t n) {
    const float scale = first_frame ? 1.0f : (kind == FrameFilter::mix_transposed ? keep : 1.0f / keep);
    switch (kind) {
        case FrameFilter::mix:
            mix_row(first_frame, keep, carry, x, state, n);
            break;
        case FrameFilter::unmix:
            unmix_row(first_frame, keep, carry, x, state, out, n);
            break;
        case FrameFilter::mix_transposed:
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) {
                state[i] = x[i] + carry * state[i];
                out[i] = state[i] * scale;
            }
            break;
        case FrameFilter::unmix_transposed:
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) {
                const float scaled = x[i] * scale;
                out[i] = scaled - carry * state[i];
                state[i] = scaled;
            }
            break;
    }
}

void frame_filter(const FrameFilterArgs& args, int threads) {
    const FrameFilter kind = FrameFilter(args.kind);
    const Shape shape = args.shape;
    const FrameView x = args.x, out = args.out;
    const bool reversed = kind == FrameFilter::mix_transposed || kind == FrameFilter::unmix_transposed;
    // In place, the lines to write were just read and are in the cache: with AVX2, streaming around it took 1.3 times as long.
    // Whole lines of AVX-512 were measured streaming only, at 120 % of a copy.
    const bool stream = should_stream(shape, out) && (out.data != x.data || W == 16);
    for_each_row(shape, threads, [=](int64_t b, int64_t r, int64_t n) {
        const auto c = table_row<FrameFilterCoefficients>(args.coefficients, b);
        Row scratch, result, state;
        clear_row(state, n);
        for (int64_t step = 0; step < shape.frames; ++step) {
            const int64_t s = reversed ? shape.frames - 1 - step : step;
            const float* row = load_row(x, b, s, r, n, scratch);
            filter_row(kind, s == 0, c.keep, c.carry, row, state.v, result.v, n);
            store_row(out, b, s, r, n, kind == FrameFilter::mix ? state.v : result.v, stream);
        }
    });
}

}  // namespace DYDIFF_ISA

DYDIFF_KERNEL(frame_filter, FrameFilterArgs)
}  // namespace dydiff
