// What crosses the border from Python: raw pointers, sizes and strides. No torch headers, so one build serves every torch.
#pragma once
#include <cstdint>

namespace dydiff {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

// A batch (B, S, rest...) is seen as (batch, frames, inner) with inner = the product of the rest.
struct Shape {
    int64_t batch, frames, inner;
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

// Which noise: Philox key, and the counter words that do not depend on the element (docs/architecture.md, agreement 2).
struct NoiseKey {
    uint64_t seed = 0;
    uint32_t step = 0, stream = 0;
    uintptr_t sample_index = 0;  // const int64_t*, one per sample; null is "no counter"

    bool present() const { return sample_index != 0; }
    int64_t index(int64_t b) const { return reinterpret_cast<const int64_t*>(sample_index)[b]; }
};

enum class FrameFilter : int { mix = 0, unmix = 1, mix_transposed = 2, unmix_transposed = 3 };

}  // namespace dydiff
