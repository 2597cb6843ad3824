// Standard normals for a batch of samples, written to memory (agreement 2 of docs/architecture.md).

namespace dydiff {
namespace DYDIFF_ISA {

// out: (1 frame per sample); shape.inner elements per sample.
inline void normal(const NoiseKey& noise, const Shape& shape, const FrameView& out, int threads) {
    const bool stream = should_stream(shape, out);
    for_each_row(shape, threads, [&](int64_t b, int64_t r, int64_t n) {
        NoiseRow buffer;
        const float* row = fill_normals(sample_counter(noise, b), r, n, buffer.v);
        store_row(out, b, 0, r, n, row, stream);
    });
}

}  // namespace DYDIFF_ISA
}  // namespace dydiff
