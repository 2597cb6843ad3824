// What crosses the border from Python: raw pointers, sizes and strides. No torch headers, so one build serves every torch.
//
// Every kernel is a function `void kernel(const Args&, int threads)` of a struct that its op defines: members with
// defaults, the first of them `Shape shape`, and a template `members` that calls its argument with the name of each. The
// op's header ends with DYDIFF_KERNEL(kernel, Args); nothing else has to know it.
//
// The standard headers stand here: they come before the target pragmas of kernels_*.cpp, so that none of their inline
// functions is compiled for an instruction set and then linked into code that runs on lesser processors.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define DYDIFF_X86 1
#else
#define DYDIFF_X86 0
#endif

namespace dydiff {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

// A batch (B, S, rest...) is seen as (batch, frames, inner) with inner = the product of the rest.
struct Shape {
    int64_t batch = 0, frames = 0, inner = 0;
};

// A tensor of that shape. Strides count elements; the inner elements of a frame are contiguous. A null pointer is "absent".
struct FrameView {
    uintptr_t data = 0;
    DType dtype = DType::f32;
    int64_t stride_batch = 0, stride_frame = 0;

    bool present() const { return data != 0; }
    int64_t item_bytes() const { return dtype == DType::f32 ? 4 : 2; }
    char* at(int64_t b, int64_t s, int64_t r) const {
        return reinterpret_cast<char*>(data) + (b * stride_batch + s * stride_frame + r) * item_bytes();
    }
};

// A tensor of tokens (three axes, channels) of any strides, but for the channels, which are contiguous.
struct TokenView {
    uintptr_t data = 0;
    DType dtype = DType::f32;
    int64_t stride0 = 0, stride1 = 0, stride2 = 0;

    // What index `i` of the first axis leaves.
    FrameView operator[](int64_t i) const {
        return {data + uintptr_t(i * stride0 * (dtype == DType::f32 ? 4 : 2)), dtype, stride1, stride2};
    }
};

// Noise of a tensor of frames: given, or drawn from a counter, which is a Philox key and the counter words that do not
// depend on the element (docs/agreements.md, agreement 2); neither is "no noise".
struct NoiseSource {
    uint64_t seed = 0;
    uint32_t step = 0, stream = 0;
    uintptr_t sample_index = 0;  // const int64_t*, one per sample; null is "no counter"
    FrameView given;

    bool drawn() const { return sample_index != 0; }
    bool present() const { return drawn() || given.present(); }
    int64_t index(int64_t b) const { return reinterpret_cast<const int64_t*>(sample_index)[b]; }
};

// Row b of a table of coefficients, whose columns are the floats of Coefficients.
template <class Coefficients>
const Coefficients& table_row(uintptr_t table, int64_t b) {
    static_assert(sizeof(Coefficients) % sizeof(float) == 0, "one float a column");
    return reinterpret_cast<const Coefficients*>(table)[b];
}

}  // namespace dydiff
