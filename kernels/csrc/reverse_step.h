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

enum DependentFlags : int { PREDICTS = 1, HAS_PREV = 2, HAS_NOISE = 4, KEEPS_X0 = 8 };

// next = D_γ'( a·u + b·x̂ + c·x̂_prev + σ·n ) with u = D_γ⁻¹ z, in one loop, so that memory is read while it calculates.
// PREDICTS: x̂ comes from z and `out` on the way, else `out` is x̂. The flags say which pointers are used.
template <int FLAGS>
void dependent_row(bool first_frame, const ReverseStepCoefficients& k, const float* __restrict z,
                   const float* __restrict out, const float* __restrict prev, const float* __restrict noise,
                   float* __restrict x0, float* __restrict mean_before, float* __restrict z_before,
                   float* __restrict next, int64_t n) {
    const float scale = first_frame ? 1.0f : 1.0f / k.keep, carry = first_frame ? 0.0f : k.carry;
    const float next_keep = first_frame ? 1.0f : k.next_keep, next_carry = first_frame ? 0.0f : k.next_carry;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        float estimate = out[i];
        if (FLAGS & PREDICTS) {
            const float mean = k.from_z * z[i] + k.from_output * out[i];
            estimate = (mean - carry * mean_before[i]) * scale;
            mean_before[i] = mean;
        }
        if (FLAGS & KEEPS_X0) x0[i] = estimate;
        float sum = k.a * ((z[i] - carry * z_before[i]) * scale) + k.b * estimate;
        if (FLAGS & HAS_PREV) sum += k.c * prev[i];
        if (FLAGS & HAS_NOISE) sum += k.sigma * noise[i];
        next[i] = next_keep * sum + next_carry * next[i];
        z_before[i] = z[i];
    }
}

constexpr decltype(&dependent_row<0>) DEPENDENT_ROWS[16] = {
    dependent_row<0>,  dependent_row<1>,  dependent_row<2>,  dependent_row<3>, dependent_row<4>,  dependent_row<5>,
    dependent_row<6>,  dependent_row<7>,  dependent_row<8>,  dependent_row<9>, dependent_row<10>, dependent_row<11>,
    dependent_row<12>, dependent_row<13>, dependent_row<14>, dependent_row<15>};

inline void add_scaled_row(float factor, const float* __restrict x, float* __restrict sum, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) sum[i] += factor * x[i];
}

inline void independent_row(const ReverseStepCoefficients& k, const float* __restrict z, const float* __restrict next_mixed,
                            const float* __restrict mixed, float* __restrict sum, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) sum[i] = k.a * z[i] + k.b * next_mixed[i] + k.c * mixed[i];
}

// The output with guidance; `scratch` and `uncond` are room for it.
inline const float* guided_row(const ReverseStepArgs& args, const ReverseStepCoefficients& k, int64_t b, int64_t s,
                               int64_t r, int64_t n, Row& scratch, Row& uncond) {
    const float* out = load_row(args.output, b, s, r, n, scratch);
    if (!args.uncond_output.present()) return out;
    guide_row(k.guidance, load_row(args.uncond_output, b, s, r, n, uncond), out, scratch.v, n);
    return scratch.v;
}

// Room for the rows of one frame.
struct ReverseStepRooms {
    Row z, output, x0, prev, noise, sum;
    NoiseRow drawn;
};

// One frame of one row: reads everything it needs, then writes x̂ and z'.
inline void step_row(const ReverseStepArgs& args, const ReverseStepCoefficients& k, int64_t b, int64_t s, int64_t r,
                     int64_t n, ReverseStepState& state, ReverseStepRooms& room, bool stream) {
    const float* z = load_row(args.z, b, s, r, n, room.z);
    const float* x0 = guided_row(args, k, b, s, r, n, room.output, room.x0);
    const float* prev = args.x0_prev.present() ? load_row(args.x0_prev, b, s, r, n, room.prev) : nullptr;
    const float* noise =
        args.noise.present() ? noise_row(args.noise, args.shape, b, s, r, n, room.drawn, room.noise) : nullptr;
    const bool known = s < args.history_frames;
    int flags = (prev ? HAS_PREV : 0) | (noise ? HAS_NOISE : 0);
    if (args.prediction != Prediction::x0) {
        if (args.dependent_noise && !known) {
            flags |= PREDICTS | (args.x0.present() ? KEEPS_X0 : 0);
        } else {  // on history frames too, because the next frame needs μ̂
            predict_row(s == 0, k, z, x0, state.mean_before.v, room.x0.v, n);
            x0 = room.x0.v;
        }
    }
    if (known) x0 = load_row(args.history, b, s, r, n, room.x0);
    const float* next = state.next.v;
    if (args.dependent_noise) {
        for (int64_t i = 0; i < n; i += PREFETCH_CHUNK) {
            const int64_t m = n - i < PREFETCH_CHUNK ? n - i : PREFETCH_CHUNK;
            prefetch_next_frame(args.shape, args.z, b, s, r + i, m);
            prefetch_next_frame(args.shape, args.output, b, s, r + i, m);
            DEPENDENT_ROWS[flags](s == 0, k, z + i, x0 + i, prev ? prev + i : prev, noise ? noise + i : noise,
                                  room.x0.v + i, state.mean_before.v + i, state.z_before.v + i, state.next.v + i, m);
        }
        if (flags & KEEPS_X0) x0 = room.x0.v;
    } else {
        mix_row(s == 0, k.next_keep, k.next_carry, x0, state.next.v, n);
        mix_row(s == 0, k.keep, k.carry, x0, state.mixed_x0.v, n);
        independent_row(k, z, state.next.v, state.mixed_x0.v, room.sum.v, n);
        if (noise) add_scaled_row(k.sigma, noise, room.sum.v, n);
        next = room.sum.v;
    }
    if (args.x0.present()) store_row(args.x0, b, s, r, n, x0, stream);
    store_row(args.z_next, b, s, r, n, next, stream);
}

inline void reverse_step(const ReverseStepArgs& args, int threads) {
    const bool stream = should_stream(args.shape, args.z_next);
    const auto* table = reinterpret_cast<const ReverseStepCoefficients*>(args.coefficients);
    for_each_row(args.shape, threads, [&](int64_t b, int64_t r, int64_t n) {
        ReverseStepState state;
        std::memset(&state, 0, sizeof(state));
        ReverseStepRooms room;
        for (int64_t s = 0; s < args.shape.frames; ++s) step_row(args, table[b], b, s, r, n, state, room, stream);
    });
}

}  // namespace DYDIFF_ISA
}  // namespace dydiff
