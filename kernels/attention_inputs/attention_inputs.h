// Queries and keys of attention from the projection of its tokens: each head's norm and the rotation of channel pairs
// (e, e + E/2) by its token's angles, per row x of E channels:
//   norm       u = w x̂,   x̂ = (x - mean) / σ (layer), x / σ (rms), σ² = mean of the squares + ε;   u = x (none)
//   rotation   y₁ = u₁ cos - u₂ sin,   y₂ = u₂ cos + u₁ sin
//   backward   du₁ = dy₁ cos + dy₂ sin,   du₂ = dy₂ cos - dy₁ sin,   p = w du,   dw = Σ du x̂
//              dx = (p - mean(p) - x̂ mean(p x̂)) / σ (layer, without mean(p) for rms; du for none)
#pragma once
#include "modulation/modulation.h"

namespace dydiff {

// A shape is (batch, tokens, channels of all heads), channels at most a row. Backward, qkv and its gradient are read and
// written whole: the values' gradient is copied into its place.
struct AttentionInputsArgs {
    Shape shape;
    int64_t heads = 1;
    int norm = 0;  // 0 none, 1 layer, 2 rms
    float epsilon = 0.0f;
    TokenView qkv;                     // (batch, tokens, 3·heads, E)
    FrameView weight_q, weight_k;      // (1, 1, E); absent without a norm
    uintptr_t cos = 0, sin = 0;        // const float*, (tokens, E/2)
    TokenView q, k;                    // (batch, heads, tokens, E); forward
    TokenView grad_q, grad_k, grad_v;  // backward
    TokenView grad_qkv;                // like qkv
    FrameView grad_weight_q, grad_weight_k;

    template <class Visit>
    static void members(Visit visit) {
        visit("shape", &AttentionInputsArgs::shape);
        visit("heads", &AttentionInputsArgs::heads);
        visit("norm", &AttentionInputsArgs::norm);
        visit("epsilon", &AttentionInputsArgs::epsilon);
        visit("qkv", &AttentionInputsArgs::qkv);
        visit("weight_q", &AttentionInputsArgs::weight_q);
        visit("weight_k", &AttentionInputsArgs::weight_k);
        visit("cos", &AttentionInputsArgs::cos);
        visit("sin", &AttentionInputsArgs::sin);
        visit("q", &AttentionInputsArgs::q);
        visit("k", &AttentionInputsArgs::k);
        visit("grad_q", &AttentionInputsArgs::grad_q);
        visit("grad_k", &AttentionInputsArgs::grad_k);
        visit("grad_v", &AttentionInputsArgs::grad_v);
        visit("grad_qkv", &AttentionInputsArgs::grad_qkv);
        visit("grad_weight_q", &AttentionInputsArgs::grad_weight_q);
        visit("grad_weight_k", &AttentionInputsArgs::grad_weight_k);
    }
};

namespace DYDIFF_ISA {

inline Moments head_moments(int norm, const float* x, int64_t n, float epsilon) {
    if (norm == 1) return moments(x, n, epsilon);
    if (norm == 0) return {0.0f, 1.0f};
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; ++i) squares += x[i] * x[i];
    return {0.0f, 1.0f / std::sqrt(squares / float(n) + epsilon)};
}

inline void prepare_head(const float* __restrict x, Moments m, const float* __restrict w, const float* __restrict cos,
                         const float* __restrict sin, int64_t half, float* __restrict y) {
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
        const float first = (x[i] - m.mean) * m.inverse_deviation * w[i];
        const float second = (x[half + i] - m.mean) * m.inverse_deviation * w[half + i];
        y[i] = first * cos[i] - second * sin[i];
        y[half + i] = second * cos[i] + first * sin[i];
    }
}

// One row: dx into dx, and its part of dw added to sum.
inline void prepare_head_backward(int norm, const float* __restrict x, const float* __restrict dy, Moments m,
                                  const float* __restrict w, const float* __restrict cos, const float* __restrict sin,
                                  int64_t half, float* __restrict dx, float* __restrict sum) {
    if (norm == 0) {
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
            dx[i] = dy[i] * cos[i] + dy[half + i] * sin[i];
            dx[half + i] = dy[half + i] * cos[i] - dy[i] * sin[i];
        }
        return;
    }
    float sum_p = 0.0f, sum_px = 0.0f;
#pragma omp simd reduction(+ : sum_p, sum_px)
    for (int64_t i = 0; i < half; ++i) {
        const float du1 = dy[i] * cos[i] + dy[half + i] * sin[i], du2 = dy[half + i] * cos[i] - dy[i] * sin[i];
        const float n1 = (x[i] - m.mean) * m.inverse_deviation, n2 = (x[half + i] - m.mean) * m.inverse_deviation;
        sum[i] += du1 * n1;
        sum[half + i] += du2 * n2;
        dx[i] = w[i] * du1;
        dx[half + i] = w[half + i] * du2;
        sum_p += dx[i] + dx[half + i];
        sum_px += dx[i] * n1 + dx[half + i] * n2;
    }
    const float channels = float(2 * half), mean_p = norm == 1 ? sum_p / channels : 0.0f, mean_px = sum_px / channels;
#pragma omp simd
    for (int64_t i = 0; i < 2 * half; ++i) {
        const float normal = (x[i] - m.mean) * m.inverse_deviation;
        dx[i] = (dx[i] - mean_p - normal * mean_px) * m.inverse_deviation;
    }
}

// The weights of a norm; ones without.
inline const float* norm_weight(const FrameView& weight, int64_t E, Row& buffer) {
    if (weight.present()) return load_row(weight, 0, 0, 0, E, buffer);
    for (int64_t i = 0; i < E; ++i) buffer.v[i] = 1.0f;
    return buffer.v;
}

// Calls body(batch, token, number of the stretch) for all tokens.
template <class Body>
void for_each_token(const Shape& shape, int threads, const Body& body) {
    for_each_stretch({1, shape.batch * shape.frames, shape.inner}, threads,
                     [&](int64_t, int64_t first, int64_t end, int64_t stretch) {
                         for (int64_t i = first; i < end; ++i) body(i / shape.frames, i % shape.frames, stretch);
                     });
}

void attention_inputs(const AttentionInputsArgs& args, int threads) {
    const int64_t E = args.shape.inner / args.heads, half = E / 2;
    Row buffer_q, buffer_k;
    const float* weights[2] = {norm_weight(args.weight_q, E, buffer_q), norm_weight(args.weight_k, E, buffer_k)};
    for_each_token(args.shape, threads, [&](int64_t b, int64_t token, int64_t) {
        Row buffer, y;
        const float* cos = reinterpret_cast<const float*>(args.cos) + token * half;
        const float* sin = reinterpret_cast<const float*>(args.sin) + token * half;
        for (int part = 0; part < 2; ++part) {
            const FrameView out = (part ? args.k : args.q)[b];
            for (int64_t head = 0; head < args.heads; ++head) {
                const float* x = load_row(args.qkv[b], token, part * args.heads + head, 0, E, buffer);
                const Moments m = head_moments(args.norm, x, E, args.epsilon);
                prepare_head(x, m, weights[part], cos, sin, half, y.v);
                store_row(out, head, token, 0, E, y.v, false);
            }
        }
    });
}

void attention_inputs_backward(const AttentionInputsArgs& args, int threads) {
    const int64_t E = args.shape.inner / args.heads, half = E / 2;
    const int64_t stretches = num_stretches({1, args.shape.batch * args.shape.frames, args.shape.inner});
    Row buffer_q, buffer_k;
    const float* weights[2] = {norm_weight(args.weight_q, E, buffer_q), norm_weight(args.weight_k, E, buffer_k)};
    std::vector<float> sums(size_t(stretches * 2 * E), 0.0f);
    for_each_token(args.shape, threads, [&](int64_t b, int64_t token, int64_t stretch) {
        Row x_buffer, dy_buffer, dx;
        const float* cos = reinterpret_cast<const float*>(args.cos) + token * half;
        const float* sin = reinterpret_cast<const float*>(args.sin) + token * half;
        const FrameView qkv = args.qkv[b], out = args.grad_qkv[b];
        for (int part = 0; part < 3; ++part) {
            const FrameView grad = (part == 0 ? args.grad_q : part == 1 ? args.grad_k : args.grad_v)[b];
            for (int64_t head = 0; head < args.heads; ++head) {
                const float* dy = load_row(grad, head, token, 0, E, dy_buffer);
                const int64_t row = part * args.heads + head;
                if (part < 2) {
                    const float* x = load_row(qkv, token, row, 0, E, x_buffer);
                    const Moments m = head_moments(args.norm, x, E, args.epsilon);
                    prepare_head_backward(args.norm, x, dy, m, weights[part], cos, sin, half, dx.v,
                                          sums.data() + (stretch * 2 + part) * E);
                }
                store_row(out, token, row, 0, E, part < 2 ? dx.v : dy, false);
            }
        }
    });
    for (int part = 0; part < 2; ++part) {
        const FrameView& grad = part ? args.grad_weight_k : args.grad_weight_q;
        if (!grad.present()) continue;
        Row total;
        clear_row(total, E);
        for (int64_t stretch = 0; stretch < stretches; ++stretch)
            for (int64_t i = 0; i < E; ++i) total.v[i] += sums[size_t((stretch * 2 + part) * E + i)];
        store_row(grad, 0, 0, 0, E, total.v, false);
    }
}

}  // namespace DYDIFF_ISA

DYDIFF_KERNEL(attention_inputs, AttentionInputsArgs)
DYDIFF_KERNEL(attention_inputs_backward, AttentionInputsArgs)
}  // namespace dydiff
