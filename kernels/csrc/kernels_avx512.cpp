// Kernels for x86-64 processors with AVX-512 (F, BW, DQ, VL). Standard headers come before the target pragma, so that none of their inline
// functions is compiled for it and then linked into code that runs on lesser processors.
#include <cmath>
#include <cstring>
#include <vector>

#include "kernel_table.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define DYDIFF_ISA avx512
#include "simd_avx512.h"

#include "ops.h"
#pragma GCC pop_options

namespace dydiff {
const KernelTable* avx512_kernels() {
    static constexpr KernelTable table = avx512::make_table("avx512");
    return &table;
}
}  // namespace dydiff
#else
namespace dydiff {
const KernelTable* avx512_kernels() { return nullptr; }
}  // namespace dydiff
#endif
