// Vectors of 16 floats with AVX-512. See simd_portable.h for what each function means.
#include <immintrin.h>

namespace dydiff {
namespace DYDIFF_ISA {

constexpr int W = 16;
typedef float VecF __attribute__((vector_size(64)));
typedef uint32_t VecU __attribute__((vector_size(64)));
typedef int32_t VecI __attribute__((vector_size(64)));
typedef uint64_t VecU64 __attribute__((vector_size(64)));
typedef uint16_t VecH __attribute__((vector_size(32)));

inline VecF fused_multiply_add(VecF a, VecF b, VecF c) { return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

inline VecF square_root(VecF a) { return (VecF)_mm512_sqrt_ps((__m512)a); }

inline VecU64 multiply_low_words(VecU64 a, VecU64 b) { return (VecU64)_mm512_mul_epu32((__m512i)a, (__m512i)b); }

inline void transpose_quads(VecF& a, VecF& b, VecF& c, VecF& d) {
    const __m512d ab_low = (__m512d)_mm512_unpacklo_ps((__m512)a, (__m512)b);
    const __m512d ab_high = (__m512d)_mm512_unpackhi_ps((__m512)a, (__m512)b);
    const __m512d cd_low = (__m512d)_mm512_unpacklo_ps((__m512)c, (__m512)d);
    const __m512d cd_high = (__m512d)_mm512_unpackhi_ps((__m512)c, (__m512)d);
    a = (VecF)_mm512_unpacklo_pd(ab_low, cd_low);
    b = (VecF)_mm512_unpackhi_pd(ab_low, cd_low);
    c = (VecF)_mm512_unpacklo_pd(ab_high, cd_high);
    d = (VecF)_mm512_unpackhi_pd(ab_high, cd_high);
}

inline VecF half_to_float(VecH h) { return (VecF)_mm512_cvtph_ps((__m256i)h); }

inline VecH float_to_half(VecF v) { return (VecH)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }

inline void stream_store(void* to, VecF v) { _mm512_stream_ps(static_cast<float*>(to), (__m512)v); }

inline void stream_store(void* to, VecH v) { _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)v); }

inline void stream_fence() { _mm_sfence(); }

}  // namespace DYDIFF_ISA
}  // namespace dydiff
