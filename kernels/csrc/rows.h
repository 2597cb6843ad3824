// Rows: stretches of up to ROW elements of one frame, in float32. Ops walk the frames of a row, so the state that the frame
// recurrence carries stays in the L1 and L2 caches, and each element is read from and written to memory once. A row is
// four pages long, because hardware prefetching starts anew at each row: with rows of one page a mix took 1.5 times as long.
#pragma once
#include "philox.h"

namespace dydiff {
namespace DYDIFF_ISA {

constexpr int64_t ROW = 4096;
constexpr int64_t PREFETCH_CHUNK = 256;  // few enough lines at once for the processor to keep track of
constexpr int64_t NOISE_BUFFER = ROW + NORMALS_PER_CALL + 4;

struct alignas(64) Row {
    float v[ROW];
};

inline void clear_row(Row& row, int64_t n) { std::memset(row.v, 0, sizeof(float) * size_t(n)); }

struct alignas(64) NoiseRow {
    float v[NOISE_BUFFER];
};

inline VecF bfloat_to_float(VecH h) { return (VecF)(__builtin_convertvector(h, VecU) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
inline VecH float_to_bfloat(VecF v) {
    const VecU bits = (VecU)v;
    const VecU rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const VecU quiet_nan = VecU{} + 0x7FC0u;
    return __builtin_convertvector(v == v ? rounded : quiet_nan, VecH);
}

inline VecF widen(DType dtype, VecH h) { return dtype == DType::bf16 ? bfloat_to_float(h) : half_to_float(h); }

inline VecH narrow(DType dtype, VecF v) { return dtype == DType::bf16 ? float_to_bfloat(v) : float_to_half(v); }

// Starts to fetch elements [r, r + n) of the frame after s, while this one is calculated: frames lie too far apart for the
// hardware to foresee the next row, which matters where an op reads several tensors.
inline void prefetch_next_frame(const Shape& shape, const FrameView& x, int64_t b, int64_t s, int64_t r, int64_t n) {
    if (s + 1 >= shape.frames) return;
    const char* from = x.at(b, s + 1, r);
    for (int64_t i = 0; i < n * x.item_bytes(); i += 64) __builtin_prefetch(from + i, 0, 2);
}

// Elements [r, r + n) of frame s as floats: in place for float32, else converted into `scratch`.
inline const float* load_row(const FrameView& x, int64_t b, int64_t s, int64_t r, int64_t n, Row& scratch) {
    const char* from = x.at(b, s, r);
    if (x.dtype == DType::f32) return reinterpret_cast<const float*>(from);
    for (int64_t i = 0; i < n; i += W) {
        const int64_t lanes = n - i < W ? n - i : W;
        VecH h = {};
        std::memcpy(&h, from + 2 * i, lanes == W ? sizeof(h) : size_t(2 * lanes));
        const VecF v = widen(x.dtype, h);
        std::memcpy(scratch.v + i, &v, sizeof(v));
    }
    return scratch.v;
}

inline bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

inline void store_row_f32(char* to, const float* row, int64_t n, bool stream) {
    int64_t i = 0;
    if (stream && aligned(to, sizeof(VecF))) {
        for (; i + W <= n; i += W) {
            VecF v;
            std::memcpy(&v, row + i, sizeof(v));
            stream_store(to + 4 * i, v);
        }
    }
    std::memcpy(to + 4 * i, row + i, size_t(4 * (n - i)));
}

inline void store_row_16bit(char* to, DType dtype, const float* row, int64_t n, bool stream) {
    stream = stream && aligned(to, sizeof(VecH));
    for (int64_t i = 0; i < n; i += W) {
        const int64_t lanes = n - i < W ? n - i : W;
        VecF v = {};
        std::memcpy(&v, row + i, lanes == W ? sizeof(v) : size_t(4 * lanes));
        const VecH h = narrow(dtype, v);
        if (stream && lanes == W)
            stream_store(to + 2 * i, h);
        else
            std::memcpy(to + 2 * i, &h, size_t(2 * lanes));
    }
}

// Writes n floats to elements [r, r + n) of frame s; `stream` bypasses the cache, which saves reading the lines first.
inline void store_row(const FrameView& x, int64_t b, int64_t s, int64_t r, int64_t n, const float* row, bool stream) {
    char* to = x.at(b, s, r);
    if (x.dtype == DType::f32)
        store_row_f32(to, row, n, stream);
    else
        store_row_16bit(to, x.dtype, row, n, stream);
}

// Noise for elements [r, r + n) of frame s: given, or drawn into `buffer`.
inline const float* noise_row(const NoiseSource& noise, const Shape& shape, int64_t b, int64_t s, int64_t r, int64_t n,
                              NoiseRow& buffer, Row& scratch) {
    if (!noise.drawn()) return load_row(noise.given, b, s, r, n, scratch);
    return fill_normals(sample_counter(noise, b), s * shape.inner + r, n, buffer.v);
}

// L ε of elements [r, r + n) of all frames, into `rows`: ε as above, L the lower triangle of `op` (frames, frames) floats. A
// chunk of all frames stays in the L1 cache, each frame in the place of its ε: from the last one up, none needs a later one.
inline void color_rows(const FrameView& op, const NoiseSource& noise, const Shape& shape, int64_t b, int64_t r, int64_t n,
                       NoiseRow& buffer, std::vector<Row>& rows) {
    rows.resize(size_t(shape.frames));
    for (int64_t s = 0; s < shape.frames; ++s) {
        const float* white = noise_row(noise, shape, b, s, r, n, buffer, rows[s]);
        if (white != rows[s].v) std::memcpy(rows[s].v, white, sizeof(float) * size_t(n));
    }
    for (int64_t i = 0; i < n; i += PREFETCH_CHUNK) {
        const int64_t m = n - i < PREFETCH_CHUNK ? n - i : PREFETCH_CHUNK;
        for (int64_t s = shape.frames - 1; s >= 0; --s) {
            const float* weights = reinterpret_cast<const float*>(op.at(s, 0, 0));
            float* __restrict to = rows[s].v + i;
            for (int64_t j = 0; j < m; ++j) to[j] *= weights[s];
            for (int64_t k = 0; k < s; ++k) {
                const float* __restrict from = rows[k].v + i;
#pragma omp simd
                for (int64_t j = 0; j < m; ++j) to[j] += weights[k] * from[j];
            }
        }
    }
}

// Results that would push everything else out of the cache are written around it.
inline bool should_stream(const Shape& shape, const FrameView& x) {
    return shape.batch * shape.frames * shape.inner * x.item_bytes() > (int64_t(8) << 20);
}

// Calls body(b, r, n) for every row of every sample, on up to `threads` threads, fewer when there is little to do.
template <class Body>
void for_each_row(const Shape& shape, int threads, const Body& body) {
    const int64_t rows = (shape.inner + ROW - 1) / ROW, items = shape.batch * rows;
    const int64_t worthwhile = shape.batch * shape.frames * shape.inner / 16384 + 1;
    const int team = int(threads < worthwhile ? threads : worthwhile);
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
    for (int64_t item = 0; item < items; ++item) {
        const int64_t r = (item % rows) * ROW;
        body(item / rows, r, shape.inner - r < ROW ? shape.inner - r : ROW);
    }
    stream_fence();
}

}  // namespace DYDIFF_ISA
}  // namespace dydiff
