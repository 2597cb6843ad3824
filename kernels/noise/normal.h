// Standard normals for a batch of samples, written to memory (agreement 2 of docs/agreements.md).
#pragma once
#include "rows.h"

namespace dydiff {

struct NormalArgs {
    Shape shape;  // one frame per sample
    NoiseSource noise;
    FrameView out;

    template <class Visit>
    static void members(Visit visit) {
        visit("shape", &NormalArgs::shape);
        visit("noise", &NormalArgs::noise);
        visit("out", &NormalArgs::out);
    }
};

namespace DYDIFF_ISA {

void normal(const NormalArgs& args, int threads) {
    const bool stream = should_stream(args.shape, args.out);
    for_each_row(args.shape, threads, [&](int64_t b, int64_t r, int64_t n) {
        NoiseRow buffer;
        const float* row = fill_normals(sample_counter(args.noise, b), r, n, buffer.v);
        store_row(args.out, b, 0, r, n, row, stream);
    });
}

}  // namespace DYDIFF_ISA

DYDIFF_KERNEL(normal, NormalArgs)
}  // namespace dydiff
