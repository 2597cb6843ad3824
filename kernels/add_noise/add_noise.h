// Forward process and training target (arXiv 2503.00951), all frames of a row in one walk:
//   x  = latents, or scale·(mean + exp(logvar / 2)·n)       pre-encoded latents, sampled here
//   A x, B ε                                                both are recurrences along frames
//   z  = a A x + s B ε
//   target = p B ε + q A x,  or p ε + q x before mixing
#pragma once
#include "frame_mix/frame_mix.h"

namespace dydiff {

struct AddNoiseArgs {
    Shape shape;
    uintptr_t coefficients = 0;  // const AddNoiseCoefficients*, one per sample
    bool mixes_target = true;
    FrameView latents;           // x; or, with `logvar`, the posterior's mean
    FrameView logvar;            // present: x = scale·(mean + exp(logvar / 2)·posterior noise)
    NoiseSource posterior_noise;
    float scale = 1.0f;
    NoiseSource noise;
    FrameView noise_operator;    // L, (frames, frames) float32; present: ε is L times the noise
    FrameView z, target, x0;     // target and x0 may be absent

    template <class Visit>
    static void members(Visit visit) {
        visit("shape", &AddNoiseArgs::shape);
        visit("coefficients", &AddNoiseArgs::coefficients);
        visit("mixes_target", &AddNoiseArgs::mixes_target);
        visit("latents", &AddNoiseArgs::latents);
        visit("logvar", &AddNoiseArgs::logvar);
        visit("posterior_noise", &AddNoiseArgs::posterior_noise);
        visit("scale", &AddNoiseArgs::scale);
        visit("noise", &AddNoiseArgs::noise);
        visit("noise_operator", &AddNoiseArgs::noise_operator);
        visit("z", &AddNoiseArgs::z);
        visit("target", &AddNoiseArgs::target);
        visit("x0", &AddNoiseArgs::x0);
    }
};

// The columns of the table, in order.
struct AddNoiseCoefficients {
    float signal, noise;                // a, s
    float target_noise, target_signal;  // p, q
    float keep, carry;                  // of A
    float noise_keep, noise_carry;      // of B; (1, 0) leaves the noise white
};

namespace DYDIFF_ISA {

// eᵗ, relative error 1e-7; t is held in [-87, 88], where float has normal results.
inline VecF exponential(VecF t) {
    t = t < -87.0f ? VecF{} - 87.0f : t;
    t = t > 88.0f ? VecF{} + 88.0f : t;
    const VecF shifter = VecF{} + 12582912.0f;  // 1.5·2²³ rounds to an integer and leaves it in the low bits
    const VecF shifted = fused_multiply_add(t, VecF{} + 1.44269504f, shifter);
    const VecF n = shifted - shifter;
    VecF f = fused_multiply_add(n, VecF{} - 0.693359375f, t);  // ln 2 in two parts; the first is exact in products
    f = fused_multiply_add(n, VecF{} + 2.12194440e-4f, f);
    // Taylor series: |f| ≤ ½ ln 2, the first term left out is below 6e-9.
    constexpr float inverse_factorials[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    VecF p = VecF{} + 1.0f / 5040;
    for (const float c : inverse_factorials) p = fused_multiply_add(p, f, VecF{} + c);
    return (VecF)((VecI)p + ((VecI)shifted << 23));
}

// x = scale·(mean + exp(logvar / 2)·noise)
inline void sample_posterior_row(float scale, const float* mean, const float* logvar, const float* noise, float* x,
                                 int64_t n) {
    for (int64_t i = 0; i < n; i += W) {
        const size_t bytes = sizeof(float) * size_t(n - i < W ? n - i : W);
        VecF m = {}, l = {}, e = {};
        std::memcpy(&m, mean + i, bytes);
        std::memcpy(&l, logvar + i, bytes);
        std::memcpy(&e, noise + i, bytes);
        const VecF sample = fused_multiply_add(exponential(l * 0.5f), e, m) * scale;
        std::memcpy(x + i, &sample, bytes);
    }
}

// z from A x (`mean`) and B ε (`mixed`), and the target from those or from x and ε.
template <bool MIXES_TARGET>
void noised_row(const AddNoiseCoefficients& c, const float* __restrict mean, const float* __restrict mixed, const float* x,
                const float* noise, float* __restrict z, float* __restrict target, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        z[i] = c.signal * mean[i] + c.noise * mixed[i];
        target[i] = c.target_noise * (MIXES_TARGET ? mixed : noise)[i] + c.target_signal * (MIXES_TARGET ? mean : x)[i];
    }
}

void add_noise(const AddNoiseArgs& args, int threads) {
    const bool stream = should_stream(args.shape, args.z);
    for_each_row(args.shape, threads, [&](int64_t b, int64_t r, int64_t n) {
        const auto c = table_row<AddNoiseCoefficients>(args.coefficients, b);
        Row latents, scratch, mean, mixed, z, target;
        NoiseRow buffer;
        static thread_local std::vector<Row> colored;
        const bool colors = args.noise_operator.present();
        if (colors) color_rows(args.noise_operator, args.noise, args.shape, b, r, n, buffer, colored);
        for (int64_t s = 0; s < args.shape.frames; ++s) {
            const float* x = load_row(args.latents, b, s, r, n, latents);
            if (args.logvar.present()) {
                const float* posterior = noise_row(args.posterior_noise, args.shape, b, s, r, n, buffer, scratch);
                const float* logvar = load_row(args.logvar, b, s, r, n, target);  // `target` is free until below
                sample_posterior_row(args.scale, x, logvar, posterior, latents.v, n);
                x = latents.v;
            }
            mix_row(s == 0, c.keep, c.carry, x, mean.v, n);
            const float* noise = colors ? colored[s].v : noise_row(args.noise, args.shape, b, s, r, n, buffer, scratch);
            mix_row(s == 0, c.noise_keep, c.noise_carry, noise, mixed.v, n);
            (args.mixes_target ? noised_row<true> : noised_row<false>)(c, mean.v, mixed.v, x, noise, z.v, target.v, n);
            store_row(args.z, b, s, r, n, z.v, stream);
            if (args.target.present()) store_row(args.target, b, s, r, n, target.v, stream);
            if (args.x0.present()) store_row(args.x0, b, s, r, n, x, stream);
        }
    });
}

}  // namespace DYDIFF_ISA

DYDIFF_KERNEL(add_noise, AddNoiseArgs)
}  // namespace dydiff
