// Kernels for x86-64 processors with AVX2. Standard headers come before the target pragma, so that none of their inline
// functions is compiled for it and then linked into code that runs on lesser processors.
#include <cmath>
#include <cstring>
#include <vector>

#include "kernel_table.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define DYDIFF_ISA avx2
#include "simd_avx2.h"

#include "ops.h"
#pragma GCC pop_options

namespace dydiff {
const KernelTable* avx2_kernels() {
    static constexpr KernelTable table = avx2::make_table("avx2");
    return &table;
}
}  // namespace dydiff
#else
namespace dydiff {
const KernelTable* avx2_kernels() { return nullptr; }
}  // namespace dydiff
#endif
