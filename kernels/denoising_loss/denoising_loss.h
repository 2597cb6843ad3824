// Weighted squared error and its gradient (the training loss of arXiv 2503.00951, with weights):
//   loss_b = Σ_s w_bs Σ_r (output - target)²        grad = 2 w_bs (output - target)
// The caller folds means and the upstream gradient into w.
#pragma once
#include "rows.h"

namespace dydiff {

struct LossArgs {
    Shape shape;
    FrameView output, target;
    FrameView weights;   // float32, one element a frame; frames of weight 0 are not read
    uintptr_t loss = 0;  // forward: double*, (batch): Σ weight·(output - target)²
    FrameView grad;      // backward: 2·weight·(output - target)

    template <class Visit>
    static void members(Visit visit) {
        visit("shape", &LossArgs::shape);
        visit("output", &LossArgs::output);
        visit("target", &LossArgs::target);
        visit("weights", &LossArgs::weights);
        visit("loss", &LossArgs::loss);
        visit("grad", &LossArgs::grad);
    }
};

namespace DYDIFF_ISA {

// Squared errors of at most ROW elements add up in float32 lanes; rows add up in double.
inline float squared_error_row(const float* __restrict output, const float* __restrict target, int64_t n) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += (output[i] - target[i]) * (output[i] - target[i]);
    return sum;
}

// Walks the frames of a row and calls body(s, weight, output row, target row), with null rows where the weight is 0.
template <class Body>
void walk_errors(const LossArgs& args, int64_t b, int64_t r, int64_t n, const Body& body) {
    Row output, target;
    for (int64_t s = 0; s < args.shape.frames; ++s) {
        const float weight = *reinterpret_cast<const float*>(args.weights.at(b, s, 0));
        if (weight == 0.0f)
            body(s, 0.0f, nullptr, nullptr);
        else
            body(s, weight, load_row(args.output, b, s, r, n, output), load_row(args.target, b, s, r, n, target));
    }
}

// The sums do not depend on the number of threads: each row has a slot of its own, added up in order.
void loss_forward(const LossArgs& args, int threads) {
    const int64_t rows = (args.shape.inner + ROW - 1) / ROW;
    std::vector<double> slots(size_t(args.shape.batch * rows), 0.0);
    for_each_row(args.shape, threads, [&](int64_t b, int64_t r, int64_t n) {
        double sum = 0.0;
        walk_errors(args, b, r, n, [&](int64_t, float weight, const float* output, const float* target) {
            if (weight != 0.0f) sum += double(weight) * squared_error_row(output, target, n);
        });
        slots[size_t(b * rows + r / ROW)] = sum;
    });
    double* loss = reinterpret_cast<double*>(args.loss);
    for (int64_t b = 0; b < args.shape.batch; ++b) {
        loss[b] = 0.0;
        for (int64_t row = 0; row < rows; ++row) loss[b] += slots[size_t(b * rows + row)];
    }
}

void loss_backward(const LossArgs& args, int threads) {
    const bool stream = should_stream(args.shape, args.grad);
    for_each_row(args.shape, threads, [&](int64_t b, int64_t r, int64_t n) {
        Row grad;
        walk_errors(args, b, r, n, [&](int64_t s, float weight, const float* output, const float* target) {
            if (weight == 0.0f) {
                std::memset(grad.v, 0, sizeof(float) * size_t(n));
            } else {
                const float factor = 2.0f * weight;
#pragma omp simd
                for (int64_t i = 0; i < n; ++i) grad.v[i] = factor * (output[i] - target[i]);
            }
            store_row(args.grad, b, s, r, n, grad.v, stream);
        });
    });
}

}  // namespace DYDIFF_ISA

DYDIFF_KERNEL(loss_forward, LossArgs)
DYDIFF_KERNEL(loss_backward, LossArgs)
}  // namespace dydiff
