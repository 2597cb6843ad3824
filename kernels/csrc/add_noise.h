// Forward process and training target (arXiv 2503.00951), all frames of a row in one walk:
//   x  = latents, or scale·(mean + exp(logvar / 2)·n)       pre-encoded latents, sampled here
//   μ  = D_γ x,   ε̃ = D_γ ε  (dependent noise) or ε         both are recurrences along frames
//   z  = √ᾱ μ + √(1-ᾱ) ε̃
//   target = ε̃ (eps),  √ᾱ ε̃ - √(1-ᾱ) μ (v),  x (x0)

namespace dydiff {
namespace DYDIFF_ISA {

struct AddNoiseCoefficients {
    float signal, noise;              // √ᾱ, √(1-ᾱ)
    float keep, carry;                // of the signal
    float noise_keep, noise_carry;    // of the noise; (1, 0) leaves it independent
    float target_noise, target_mean;  // target = target_noise·ε̃ + target_mean·μ, for eps and v
};

inline AddNoiseCoefficients add_noise_coefficients(const AddNoiseArgs& args, int64_t b) {
    const float* c = reinterpret_cast<const float*>(args.coefficients) + b * AddNoiseArgs::NUM_COEFFICIENTS;
    const bool v = args.prediction == Prediction::v;
    return {c[0], c[1], c[2], c[3], c[4], c[5], v ? c[0] : 1.0f, v ? -c[1] : 0.0f};
}

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

// μ is in `mean`, ε̃ in `mixed`.
inline void noised_row(const AddNoiseCoefficients& c, const float* __restrict mean, const float* __restrict mixed,
                       float* __restrict z, float* __restrict target, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        z[i] = c.signal * mean[i] + c.noise * mixed[i];
        target[i] = c.target_noise * mixed[i] + c.target_mean * mean[i];
    }
}

inline void add_noise(const AddNoiseArgs& args, int threads) {
    const bool stream = should_stream(args.shape, args.z);
    for_each_row(args.shape, threads, [&](int64_t b, int64_t r, int64_t n) {
        const AddNoiseCoefficients c = add_noise_coefficients(args, b);
        Row latents, scratch, mean, mixed, z, target;
        NoiseRow buffer;
        for (int64_t s = 0; s < args.shape.frames; ++s) {
            const float* x = load_row(args.latents, b, s, r, n, latents);
            if (args.logvar.present()) {
                const float* posterior = noise_row(args.posterior_noise, args.shape, b, s, r, n, buffer, scratch);
                const float* logvar = load_row(args.logvar, b, s, r, n, target);  // `target` is free until below
                sample_posterior_row(args.scale, x, logvar, posterior, latents.v, n);
                x = latents.v;
            }
            mix_row(s == 0, c.keep, c.carry, x, mean.v, n);
            const float* noise = noise_row(args.noise, args.shape, b, s, r, n, buffer, scratch);
            mix_row(s == 0, c.noise_keep, c.noise_carry, noise, mixed.v, n);
            noised_row(c, mean.v, mixed.v, z.v, target.v, n);
            store_row(args.z, b, s, r, n, z.v, stream);
            const float* wanted = args.prediction == Prediction::x0 ? x : target.v;
            if (args.target.present()) store_row(args.target, b, s, r, n, wanted, stream);
            if (args.x0.present()) store_row(args.x0, b, s, r, n, x, stream);
        }
    });
}

}  // namespace DYDIFF_ISA
}  // namespace dydiff
