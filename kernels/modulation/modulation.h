// The two element-wise halves of an adaLN-Zero branch (Peebles & Xie 2023), per token of D channels; a group of tokens
// shares its shift a, scale c and gate h:
//   modulate        y = x̂ (1 + c) + a,   x̂ = (x - mean) / σ,   σ² = var + ε
//     backward      p = dy (1 + c),  dx = (p - mean(p) - x̂ mean(p x̂)) / σ,   dc = Σ dy x̂,   da = Σ dy   (over a group)
//   gate backward   y = x + h f:   df = dy h,   dh = Σ dy f
#pragma once
#include "rows.h"

namespace dydiff {

// A shape is (groups, tokens, channels), channels at most a row; shift, scale, gate and their gradients are one row per
// group. Tokens are numbered through all groups in the order (batch, frame, token of the frame), whatever their strides.
struct ModulationArgs {
    Shape shape;
    int64_t num_frames = 1, num_tokens = 1;  // frames of a sample, tokens of a frame
    float epsilon = 0.0f;
    TokenView x;
    FrameView shift, scale;
    uintptr_t statistics = 0;  // float*, (tokens, 2): mean and 1/σ; written forward, read backward
    TokenView out;             // forward
    TokenView grad_out, grad_x;  // backward
    FrameView grad_shift, grad_scale;

    template <class Visit>
    static void members(Visit visit) {
        visit("shape", &ModulationArgs::shape);
        visit("num_frames", &ModulationArgs::num_frames);
        visit("num_tokens", &ModulationArgs::num_tokens);
        visit("epsilon", &ModulationArgs::epsilon);
        visit("x", &ModulationArgs::x);
        visit("shift", &ModulationArgs::shift);
        visit("scale", &ModulationArgs::scale);
        visit("statistics", &ModulationArgs::statistics);
        visit("out", &ModulationArgs::out);
        visit("grad_out", &ModulationArgs::grad_out);
        visit("grad_x", &ModulationArgs::grad_x);
        visit("grad_shift", &ModulationArgs::grad_shift);
        visit("grad_scale", &ModulationArgs::grad_scale);
    }
};

// Gradient of x + gate·branch with respect to gate and branch.
struct GateArgs {
    Shape shape;
    int64_t num_frames = 1, num_tokens = 1;
    FrameView gate, grad_gate;
    TokenView branch, grad_out, grad_branch;

    template <class Visit>
    static void members(Visit visit) {
        visit("shape", &GateArgs::shape);
        visit("num_frames", &GateArgs::num_frames);
        visit("num_tokens", &GateArgs::num_tokens);
        visit("branch", &GateArgs::branch);
        visit("gate", &GateArgs::gate);
        visit("grad_out", &GateArgs::grad_out);
        visit("grad_branch", &GateArgs::grad_branch);
        visit("grad_gate", &GateArgs::grad_gate);
    }
};

namespace DYDIFF_ISA {

// Sums over a group are made of sums over stretches of so many tokens, whatever the number of threads.
constexpr int64_t TOKENS = 32;

inline int64_t num_stretches(const Shape& shape) { return (shape.frames + TOKENS - 1) / TOKENS; }

// Calls body(group, first token, end token, number of the stretch), on up to `threads` threads.
template <class Body>
void for_each_stretch(const Shape& shape, int threads, const Body& body) {
    const int64_t stretches = num_stretches(shape), items = shape.batch * stretches;
    const int64_t worthwhile = shape.batch * shape.frames * shape.inner / 16384 + 1;
    const int team = int(threads < worthwhile ? threads : worthwhile);
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
    for (int64_t item = 0; item < items; ++item) {
        const int64_t first = (item % stretches) * TOKENS;
        body(item / stretches, first, shape.frames - first < TOKENS ? shape.frames : first + TOKENS, item);
    }
}

// Where a token lies, by its number.
struct TokenPlace {
    int64_t batch, frame, token;
    template <class Args>
    TokenPlace(const Args& args, int64_t number)
        : batch(number / (args.num_frames * args.num_tokens)),
          frame(number / args.num_tokens % args.num_frames),
          token(number % args.num_tokens) {}
};

inline const float* load_token(const TokenView& x, const TokenPlace& at, int64_t n, Row& scratch) {
    return load_row(x[at.batch], at.frame, at.token, 0, n, scratch);
}

inline void store_token(const TokenView& x, const TokenPlace& at, int64_t n, const float* row) {
    store_row(x[at.batch], at.frame, at.token, 0, n, row, false);
}

struct Moments {
    float mean, inverse_deviation;
};

inline Moments moments(const float* x, int64_t n, float epsilon) {
    float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    const float mean = sum / float(n);
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
    return {mean, 1.0f / std::sqrt(squares / float(n) + epsilon)};
}

void modulate(const ModulationArgs& args, int threads) {
    const int64_t n = args.shape.inner;
    Moments* statistics = reinterpret_cast<Moments*>(args.statistics);
    for_each_stretch(args.shape, threads, [&](int64_t g, int64_t first, int64_t end, int64_t) {
        Row shift_buffer, scale_buffer, x_buffer, y;
        const float* shift = load_row(args.shift, g, 0, 0, n, shift_buffer);
        const float* scale = load_row(args.scale, g, 0, 0, n, scale_buffer);
        for (int64_t token = first; token < end; ++token) {
            const TokenPlace at(args, g * args.shape.frames + token);
            const float* x = load_token(args.x, at, n, x_buffer);
            const Moments m = moments(x, n, args.epsilon);
            statistics[g * args.shape.frames + token] = m;
#pragma omp simd
            for (int64_t i = 0; i < n; ++i)
                y.v[i] = (x[i] - m.mean) * m.inverse_deviation * (1.0f + scale[i]) + shift[i];
            store_token(args.out, at, n, y.v);
        }
    });
}

// Adds up the stretches' sums of each group, in order: `sums` holds (groups, stretches, channels).
inline void add_stretches(const Shape& shape, const std::vector<float>& sums, const FrameView& out) {
    const int64_t stretches = num_stretches(shape);
    Row total;
    for (int64_t g = 0; g < shape.batch; ++g) {
        clear_row(total, shape.inner);
        for (int64_t stretch = 0; stretch < stretches; ++stretch) {
            const float* part = sums.data() + (g * stretches + stretch) * shape.inner;
#pragma omp simd
            for (int64_t i = 0; i < shape.inner; ++i) total.v[i] += part[i];
        }
        store_row(out, g, 0, 0, shape.inner, total.v, false);
    }
}

// One token: writes dx and adds to the sums of dy and dy x̂.
inline void modulate_backward_row(const float* __restrict x, const float* __restrict dy, const float* __restrict scale,
                                  Moments m, float* __restrict dx, float* __restrict sum_dy,
                                  float* __restrict sum_dy_x, int64_t n) {
    float sum_p = 0.0f, sum_px = 0.0f;
#pragma omp simd reduction(+ : sum_p, sum_px)
    for (int64_t i = 0; i < n; ++i) {
        const float normal = (x[i] - m.mean) * m.inverse_deviation, p = dy[i] * (1.0f + scale[i]);
        sum_p += p;
        sum_px += p * normal;
        sum_dy[i] += dy[i];
        sum_dy_x[i] += dy[i] * normal;
    }
    const float mean_p = sum_p / float(n), mean_px = sum_px / float(n);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        const float normal = (x[i] - m.mean) * m.inverse_deviation;
        dx[i] = (dy[i] * (1.0f + scale[i]) - mean_p - normal * mean_px) * m.inverse_deviation;
    }
}

void modulate_backward(const ModulationArgs& args, int threads) {
    const int64_t n = args.shape.inner;
    const Moments* statistics = reinterpret_cast<const Moments*>(args.statistics);
    const size_t size = size_t(args.shape.batch * num_stretches(args.shape) * n);
    std::vector<float> shift_sums(size, 0.0f), scale_sums(size, 0.0f);
    for_each_stretch(args.shape, threads, [&](int64_t g, int64_t first, int64_t end, int64_t stretch) {
        Row scale_buffer, x_buffer, dy_buffer, dx;
        const float* scale = load_row(args.scale, g, 0, 0, n, scale_buffer);
        for (int64_t token = first; token < end; ++token) {
            const TokenPlace at(args, g * args.shape.frames + token);
            const float* x = load_token(args.x, at, n, x_buffer);
            const float* dy = load_token(args.grad_out, at, n, dy_buffer);
            modulate_backward_row(x, dy, scale, statistics[g * args.shape.frames + token], dx.v,
                                  shift_sums.data() + stretch * n, scale_sums.data() + stretch * n, n);
            store_token(args.grad_x, at, n, dx.v);
        }
    });
    add_stretches(args.shape, shift_sums, args.grad_shift);
    add_stretches(args.shape, scale_sums, args.grad_scale);
}

void gate_backward(const GateArgs& args, int threads) {
    const int64_t n = args.shape.inner;
    std::vector<float> sums(size_t(args.shape.batch * num_stretches(args.shape) * n), 0.0f);
    for_each_stretch(args.shape, threads, [&](int64_t g, int64_t first, int64_t end, int64_t stretch) {
        Row gate_buffer, branch_buffer, dy_buffer, grad;
        const float* gate = load_row(args.gate, g, 0, 0, n, gate_buffer);
        float* sum = sums.data() + stretch * n;
        for (int64_t token = first; token < end; ++token) {
            const TokenPlace at(args, g * args.shape.frames + token);
            const float* branch = load_token(args.branch, at, n, branch_buffer);
            const float* dy = load_token(args.grad_out, at, n, dy_buffer);
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) {
                sum[i] += dy[i] * branch[i];
                grad.v[i] = dy[i] * gate[i];
            }
            store_token(args.grad_branch, at, n, grad.v);
        }
    });
    add_stretches(args.shape, sums, args.grad_gate);
}

}  // namespace DYDIFF_ISA

DYDIFF_KERNEL(modulate, ModulationArgs)
DYDIFF_KERNEL(modulate_backward, ModulationArgs)
DYDIFF_KERNEL(gate_backward, GateArgs)
}  // namespace dydiff
