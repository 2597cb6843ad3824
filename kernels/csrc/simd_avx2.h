// Vectors of 8 floats with AVX2, FMA and F16C. See simd_portable.h for what each function means.
#include <immintrin.h>

namespace dydiff {
namespace DYDIFF_ISA {

constexpr int W = 8;
typedef float VecF __attribute__((vector_size(32)));
typedef uint32_t VecU __attribute__((vector_size(32)));
typedef int32_t VecI __attribute__((vector_size(32)));
typedef uint64_t VecU64 __attribute__((vector_size(32)));
typedef uint16_t VecH __attribute__((vector_size(16)));

inline VecF fused_multiply_add(VecF a, VecF b, VecF c) { return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

inline VecF square_root(VecF a) { return (VecF)_mm256_sqrt_ps((__m256)a); }

inline VecU64 multiply_low_words(VecU64 a, VecU64 b) { return (VecU64)_mm256_mul_epu32((__m256i)a, (__m256i)b); }

inline void transpose_quads(VecF& a, VecF& b, VecF& c, VecF& d) {
    const __m256d ab_low = (__m256d)_mm256_unpacklo_ps((__m256)a, (__m256)b);
    const __m256d ab_high = (__m256d)_mm256_unpackhi_ps((__m256)a, (__m256)b);
    const __m256d cd_low = (__m256d)_mm256_unpacklo_ps((__m256)c, (__m256)d);
    const __m256d cd_high = (__m256d)_mm256_unpackhi_ps((__m256)c, (__m256)d);
    a = (VecF)_mm256_unpacklo_pd(ab_low, cd_low);
    b = (VecF)_mm256_unpackhi_pd(ab_low, cd_low);
    c = (VecF)_mm256_unpacklo_pd(ab_high, cd_high);
    d = (VecF)_mm256_unpackhi_pd(ab_high, cd_high);
}

inline VecF half_to_float(VecH h) { return (VecF)_mm256_cvtph_ps((__m128i)h); }

inline VecH float_to_half(VecF v) { return (VecH)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }

inline void stream_store(void* to, VecF v) { _mm256_stream_ps(static_cast<float*>(to), (__m256)v); }

inline void stream_store(void* to, VecH v) { _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)v); }

inline void stream_fence() { _mm_sfence(); }

}  // namespace DYDIFF_ISA
}  // namespace dydiff
