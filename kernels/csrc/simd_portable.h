// Vectors of 4 floats in compiler-neutral C++ (GCC and Clang vector types), for any processor.
#include "args.h"

namespace dydiff {
namespace DYDIFF_ISA {

constexpr int W = 4;
typedef float VecF __attribute__((vector_size(16)));
typedef uint32_t VecU __attribute__((vector_size(16)));
typedef int32_t VecI __attribute__((vector_size(16)));
typedef uint64_t VecU64 __attribute__((vector_size(16)));
typedef uint16_t VecH __attribute__((vector_size(8)));

// a·b + c; rounded once where the instruction set has it.
inline VecF fused_multiply_add(VecF a, VecF b, VecF c) { return a * b + c; }

inline VecF square_root(VecF a) {
    for (int i = 0; i < W; ++i) a[i] = std::sqrt(a[i]);
    return a;
}

// 64-bit products of the low 32 bits of each 64-bit lane.
inline VecU64 multiply_low_words(VecU64 a, VecU64 b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }

// Transposes each aligned group of four lanes of (a, b, c, d) as a 4×4 matrix.
inline void transpose_quads(VecF& a, VecF& b, VecF& c, VecF& d) {
    const VecF rows[4] = {a, b, c, d};
    VecF* columns[4] = {&a, &b, &c, &d};
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) (*columns[i])[j] = rows[j][i];
}

// IEEE half precision by integer arithmetic: exponents are rebased by a multiplication, which also handles subnormals.
inline float half_bits_to_float(uint16_t h) {
    const uint32_t magnitude = uint32_t(h & 0x7FFF) << 13;
    float value;
    std::memcpy(&value, &magnitude, 4);
    value *= 0x1p112f;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((h & 0x7C00) == 0x7C00) bits |= 0x7F800000u;  // infinity and NaN keep their exponent
    bits |= uint32_t(h & 0x8000) << 16;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint16_t float_to_half_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return sign | 0x7E00;   // NaN
    if (bits >= 0x477FF000) return sign | 0x7C00;  // rounds to 65536 or more: infinity
    if (bits < 0x38800000) {                       // subnormal: the addition rounds at the right bit
        float magnitude;
        std::memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        std::memcpy(&bits, &magnitude, 4);
        return sign | uint16_t(bits - 0x3F000000);
    }
    bits += 0xFFF + ((bits >> 13) & 1);  // round to nearest, ties to even
    return sign | uint16_t((bits - 0x38000000) >> 13);
}

inline VecF half_to_float(VecH h) {
    VecF v;
    for (int i = 0; i < W; ++i) v[i] = half_bits_to_float(h[i]);
    return v;
}

inline VecH float_to_half(VecF v) {
    VecH h;
    for (int i = 0; i < W; ++i) h[i] = float_to_half_bits(v[i]);
    return h;
}

// Stores that bypass the cache where the instruction set has them; `to` is aligned to the vector.
inline void stream_store(void* to, VecF v) { std::memcpy(to, &v, sizeof(v)); }

inline void stream_store(void* to, VecH v) { std::memcpy(to, &v, sizeof(v)); }

inline void stream_fence() {}

}  // namespace DYDIFF_ISA
}  // namespace dydiff
