// One step of every sampler, from timestep t (γ, ᾱ) to t' (γ'), all frames of a row in one walk:
//   out = output, or uncond + w·(output - uncond)                          guidance
//   μ̂ = from_z·z + from_output·out,  x̂ = D_γ⁻¹ μ̂ ;  x̂ = out (x0)           recovery, by kind of prediction
//   x̂ = history on history frames                                          where given
//   dependent noise:    z' = D_γ'( a·D_γ⁻¹ z + b·x̂ + c·x̂_prev + σ·n )
//   independent noise:  z' = a·z + b·D_γ' x̂ + c·D_γ x̂ + σ·n
// A row is read before it is written, so z' may overwrite z and x̂ may overwrite x̂_prev.

namespace dydiff {
namespace DYDIFF_ISA {

// The columns of the coefficient table, in order.
struct ReverseStepCoefficients {
    float guidance, from_z, from_output, keep, carry, a, b, c, sigma, next_keep, next_carry;
};
static_assert(sizeof(ReverseStepCoefficients) == sizeof(float) * ReverseStepArgs::NUM_COEFFICIENTS, "one float a column");

// What a row carries from frame to frame.
struct ReverseStepState {
    Row z_before, mean_before;  // last frame's z and μ̂, for the two unmixings
    Row next;                   // D_γ'(…) so far; independent noise: D_γ' x̂
    Row mixed_x0;               // D_γ x̂, independent noise only
};

// `out` may be `cond`.
inline void guide_row(float w, const float* uncond, const float* cond, float* out, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = uncond[i] + w * (cond[i] - uncond[i]);
}

// x̂ of a frame from z and the (guided) output; leaves μ̂ behind for the next frame.
inline void predict_row(bool first_frame, const ReverseStepCoefficients& k, const float* __restrict z,
                        const float* __restrict out, float* __restrict mean_before, float* __restrict x0, int64_t n) {
    const float scale = first_frame ? 1.0f : 1.0f / k.keep, carry = first_frame ? 0.0f : k.carry;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        const float mean = k.from_z * z[i] + k.from_output * out[i];
        x0[i] = (mean - carry * mean_before[i]) * scale;
        mean_before[i] = mean;
    }
}

// next = D_γ' of a·u + b·x̂ + c·x̂_prev + σ·n with u = D_γ⁻¹ z, in one loop; `prev` and `noise` are read where the flags say.
template <bool HAS_PREV, bool HAS_NOISE>
void dependent_row(bool first_frame, const ReverseStepCoefficients& k, const float* __restrict z,
                   const float* __restrict x0, const float* __restrict prev, const float* __restrict noise,
                   float* __restrict z_before, float* __restrict next, int64_t n) {
    const float scale = first_frame ? 1.0f : 1.0f / k.keep, carry = first_frame ? 0.0f : k.carry;
    const float next_keep = first_frame ? 1.0f : k.next_keep, next_carry = first_frame ? 0.0f : k.next_carry;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        float sum = k.a * ((z[i] - carry * z_before[i]) * scale) + k.b * x0[i];
        if (HAS_PREV) sum += k.c * prev[i];
        if (HAS_NOISE) sum += k.sigma * noise[i];
        next[i] = next_keep * sum + next_carry * next[i];
        z_before[i] = z[i];
    }
}

inline void add_scaled_row(float factor, const float* __restrict x, float* __restrict sum, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) sum[i] += factor * x[i];
}

inline void independent_row(const ReverseStepCoefficients& k, const float* __restrict z, const float* __restrict next_mixed,
                            const float* __restrict mixed, float* __restrict sum, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) sum[i] = k.a * z[i] + k.b * next_mixed[i] + k.c * mixed[i];
}

// z' of a frame; `prev` and `noise` are null where there are none. The result points into `state` or is `sum`.
inline const float* next_row(const ReverseStepArgs& args, bool first_frame, const ReverseStepCoefficients& k,
                             const float* z, const float* x0, const float* prev, const float* noise,
                             ReverseStepState& state, float* sum, int64_t n) {
    if (args.dependent_noise) {
        const auto row = prev ? (noise ? dependent_row<true, true> : dependent_row<true, false>)
                              : (noise ? dependent_row<false, true> : dependent_row<false, false>);
        row(first_frame, k, z, x0, prev, noise, state.z_before.v, state.next.v, n);
        return state.next.v;
    }
    mix_row(first_frame, k.next_keep, k.next_carry, x0, state.next.v, n);
    mix_row(first_frame, k.keep, k.carry, x0, state.mixed_x0.v, n);
    independent_row(k, z, state.next.v, state.mixed_x0.v, sum, n);
    if (noise) add_scaled_row(k.sigma, noise, sum, n);
    return sum;
}

// x̂ of frame s; `scratch` and `x0` are room for it and for the unconditional output.
inline const float* estimate_row(const ReverseStepArgs& args, const ReverseStepCoefficients& k, int64_t b, int64_t s,
                                 int64_t r, int64_t n, const float* z, ReverseStepState& state, Row& scratch, Row& x0) {
    const float* out = load_row(args.output, b, s, r, n, scratch);
    if (args.uncond_output.present()) {
        guide_row(k.guidance, load_row(args.uncond_output, b, s, r, n, x0), out, scratch.v, n);
        out = scratch.v;
    }
    if (args.prediction != Prediction::x0) {
        predict_row(s == 0, k, z, out, state.mean_before.v, x0.v, n);
        out = x0.v;
    }
    return s < args.history_frames ? load_row(args.history, b, s, r, n, x0) : out;
}

inline void reverse_step(const ReverseStepArgs& args, int threads) {
    const bool stream = should_stream(args.shape, args.z_next);
    const auto* table = reinterpret_cast<const ReverseStepCoefficients*>(args.coefficients);
    for_each_row(args.shape, threads, [&](int64_t b, int64_t r, int64_t n) {
        const ReverseStepCoefficients k = table[b];
        ReverseStepState state;
        std::memset(&state, 0, sizeof(state));
        Row z_room, scratch, x0_room, prev_room, noise_room, sum;
        NoiseRow buffer;
        for (int64_t s = 0; s < args.shape.frames; ++s) {
            const float* z = load_row(args.z, b, s, r, n, z_room);
            const float* x0 = estimate_row(args, k, b, s, r, n, z, state, scratch, x0_room);
            const float* prev = args.x0_prev.present() ? load_row(args.x0_prev, b, s, r, n, prev_room) : nullptr;
            const float* noise =
                args.noise.present() ? noise_row(args.noise, args.shape, b, s, r, n, buffer, noise_room) : nullptr;
            const float* next = next_row(args, s == 0, k, z, x0, prev, noise, state, sum.v, n);
            if (args.x0.present()) store_row(args.x0, b, s, r, n, x0, stream);
            store_row(args.z_next, b, s, r, n, next, stream);
        }
    });
}

}  // namespace DYDIFF_ISA
}  // namespace dydiff
