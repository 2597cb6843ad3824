// One step of every sampler, from timestep t (operators A, B) to t' (A', B'), all frames of a row in one walk:
//   x̂  = A⁻¹( from_z z + from_output out ),  or from_z A⁻¹z + from_output out for outputs before mixing
//   x̂  = history on history frames                                          where given
//   z' = A'( b x̂ + c x̂_prev ) + B'( k B⁻¹( z - a A x̂ ) + σ w )
// and, where B is A and B' is A', with b - k a in the place of b:
//   z' = A'( k A⁻¹z + b x̂ + c x̂_prev + σ w )
// A row is read before it is written, so z' may overwrite z and x̂ may overwrite x̂_prev.
#pragma once
#include "frame_mix/frame_mix.h"

namespace dydiff {

struct ReverseStepArgs {
    Shape shape;
    uintptr_t coefficients = 0;  // const ReverseStepCoefficients*, one per sample
    bool mixes_output = true, shares_operators = true;
    FrameView z, output, x0_prev, history;  // the last two may be absent
    int64_t history_frames = 0;
    NoiseSource noise;         // w, may be absent
    FrameView noise_operator;  // L, (frames, frames) float32; present: w is L times the noise
    FrameView z_next, x0;  // x0 may be absent; z_next may be z

    template <class Visit>
    static void members(Visit visit) {
        visit("shape", &ReverseStepArgs::shape);
        visit("coefficients", &ReverseStepArgs::coefficients);
        visit("mixes_output", &ReverseStepArgs::mixes_output);
        visit("shares_operators", &ReverseStepArgs::shares_operators);
        visit("z", &ReverseStepArgs::z);
        visit("output", &ReverseStepArgs::output);
        visit("x0_prev", &ReverseStepArgs::x0_prev);
        visit("history", &ReverseStepArgs::history);
        visit("history_frames", &ReverseStepArgs::history_frames);
        visit("noise", &ReverseStepArgs::noise);
        visit("noise_operator", &ReverseStepArgs::noise_operator);
        visit("z_next", &ReverseStepArgs::z_next);
        visit("x0", &ReverseStepArgs::x0);
    }
};

// √γ̄ and √(1-γ̄) of an operator.
struct Operator {
    float keep, carry;
};

// The columns of the table, in order.
struct ReverseStepCoefficients {
    float from_z, from_output, a, b, c, k, sigma;
    Operator A, A_next, B, B_next;
};

namespace DYDIFF_ISA {

// What a row carries from frame to frame.
struct ReverseStepState {
    Row mean_before, z_before;  // last frame's A x̂ as the output has it, and z, for the inverses of A
    Row next;                   // A'(…) so far
    Row mixed_x0, n_before;     // separate operators: A x̂ so far, and last frame's z - a A x̂ for the inverse of B,
    Row next_noise, sum;        // B'(…) so far, and both together
};

// Where a frame's elements are; what is absent is a chunk of zeros.
struct ReverseStepRows {
    const float *z, *output, *history, *prev, *noise;
    float* x0;
};

// An operator on a frame, and its inverse; the first frame is taken as it is.
struct FrameOperator {
    float keep, carry, inverse_keep;

    FrameOperator(const Operator& o, bool first_frame)
        : keep(first_frame ? 1.0f : o.keep), carry(first_frame ? 0.0f : o.carry), inverse_keep(1.0f / keep) {}
    float mix(float x, float mixed_before) const { return keep * x + carry * mixed_before; }
    float unmix(float y, float before) const { return (y - carry * before) * inverse_keep; }
};

enum StepFlags : int { MIXES = 1, KNOWN = 2, SHARED = 4 };

// A chunk of a frame in one loop, so that memory is read while it calculates. FLAGS: the output is mixed; x̂ is history; the
// operators on noise are those on the frames.
template <int FLAGS>
void step_chunk(bool first_frame, const ReverseStepCoefficients& k, const ReverseStepRows& rows, ReverseStepState& state,
                int64_t start, int64_t n) {
    const FrameOperator A(k.A, first_frame), A_next(k.A_next, first_frame), B(k.B, first_frame), B_next(k.B_next, first_frame);
    const float *__restrict z = rows.z, *__restrict output = rows.output, *__restrict history = rows.history;
    const float *__restrict prev = rows.prev, *__restrict noise = rows.noise;
    float *__restrict x0 = rows.x0, *__restrict mean_before = state.mean_before.v + start;
    float *__restrict z_before = state.z_before.v + start, *__restrict next = state.next.v + start;
    float *__restrict mixed_x0 = state.mixed_x0.v + start, *__restrict n_before = state.n_before.v + start;
    float *__restrict next_noise = state.next_noise.v + start, *__restrict sum = state.sum.v + start;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        float unmixed_z = 0.0f, estimate;
        if (FLAGS & SHARED) {
            unmixed_z = A.unmix(z[i], z_before[i]);
            z_before[i] = z[i];
        }
        if (FLAGS & MIXES) {  // on history frames too, because the next frame needs the mean
            const float mean = k.from_z * z[i] + k.from_output * output[i];
            estimate = A.unmix(mean, mean_before[i]);
            mean_before[i] = mean;
        } else {
            estimate = k.from_z * unmixed_z + k.from_output * output[i];  // separate operators: from_z is 0
        }
        if (FLAGS & KNOWN) estimate = history[i];
        x0[i] = estimate;
        const float clean = k.b * estimate + k.c * prev[i];
        if (FLAGS & SHARED) {
            next[i] = A_next.mix(k.k * unmixed_z + clean + k.sigma * noise[i], next[i]);
        } else {
            mixed_x0[i] = A.mix(estimate, mixed_x0[i]);
            const float n = z[i] - k.a * mixed_x0[i];
            next[i] = A_next.mix(clean, next[i]);
            next_noise[i] = B_next.mix(k.k * B.unmix(n, n_before[i]) + k.sigma * noise[i], next_noise[i]);
            n_before[i] = n;
            sum[i] = next[i] + next_noise[i];
        }
    }
}

constexpr decltype(&step_chunk<0>) STEP_CHUNKS[8] = {step_chunk<0>, step_chunk<1>, step_chunk<2>, step_chunk<3>,
                                                     step_chunk<4>, step_chunk<5>, step_chunk<6>, step_chunk<7>};

// Memory for the rows of one frame.
struct ReverseStepBuffers {
    Row z, output, history, prev, noise, x0;
    NoiseRow drawn;
};

// One frame of one row: reads everything it needs, then writes x̂ and z'. `colored` is L w of all frames, or null.
inline void step_row(const ReverseStepArgs& args, const ReverseStepCoefficients& k, int64_t b, int64_t s, int64_t r,
                     int64_t n, ReverseStepState& state, ReverseStepBuffers& buffer, const Row* colored, bool stream) {
    alignas(64) static constexpr float ZEROS[PREFETCH_CHUNK] = {};
    alignas(64) float unwanted[PREFETCH_CHUNK];
    const bool known = s < args.history_frames;
    const float* z = load_row(args.z, b, s, r, n, buffer.z);
    const float* output = load_row(args.output, b, s, r, n, buffer.output);
    const float* history = known ? load_row(args.history, b, s, r, n, buffer.history) : nullptr;
    const float* prev = args.x0_prev.present() ? load_row(args.x0_prev, b, s, r, n, buffer.prev) : nullptr;
    const float* noise = nullptr;
    if (args.noise.present())
        noise = colored ? colored[s].v : noise_row(args.noise, args.shape, b, s, r, n, buffer.drawn, buffer.noise);
    const int flags = (args.mixes_output ? MIXES : 0) | (known ? KNOWN : 0) | (args.shares_operators ? SHARED : 0);
    for (int64_t i = 0; i < n; i += PREFETCH_CHUNK) {
        const int64_t m = n - i < PREFETCH_CHUNK ? n - i : PREFETCH_CHUNK;
        prefetch_next_frame(args.shape, args.z, b, s, r + i, m);
        prefetch_next_frame(args.shape, args.output, b, s, r + i, m);
        const ReverseStepRows rows = {z + i,
                                      output + i,
                                      history ? history + i : ZEROS,
                                      prev ? prev + i : ZEROS,
                                      noise ? noise + i : ZEROS,
                                      args.x0.present() ? buffer.x0.v + i : unwanted};
        STEP_CHUNKS[flags](s == 0, k, rows, state, i, m);
    }
    if (args.x0.present()) store_row(args.x0, b, s, r, n, buffer.x0.v, stream);
    store_row(args.z_next, b, s, r, n, args.shares_operators ? state.next.v : state.sum.v, stream);
}

void reverse_step(const ReverseStepArgs& args, int threads) {
    const bool stream = should_stream(args.shape, args.z_next);
    for_each_row(args.shape, threads, [&](int64_t b, int64_t r, int64_t n) {
        const auto k = table_row<ReverseStepCoefficients>(args.coefficients, b);
        ReverseStepState state;  // the first frame reads zeros of it; the sum is only written
        for (Row* row : {&state.mean_before, &state.z_before, &state.next}) clear_row(*row, n);
        if (!args.shares_operators)
            for (Row* row : {&state.mixed_x0, &state.n_before, &state.next_noise}) clear_row(*row, n);
        ReverseStepBuffers buffer;
        static thread_local std::vector<Row> colored;
        const bool colors = args.noise_operator.present();
        if (colors) color_rows(args.noise_operator, args.noise, args.shape, b, r, n, buffer.drawn, colored);
        for (int64_t s = 0; s < args.shape.frames; ++s)
            step_row(args, k, b, s, r, n, state, buffer, colors ? colored.data() : nullptr, stream);
    });
}

}  // namespace DYDIFF_ISA

DYDIFF_KERNEL(reverse_step, ReverseStepArgs)
}  // namespace dydiff
