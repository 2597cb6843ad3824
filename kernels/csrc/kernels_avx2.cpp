// Kernels for x86-64 processors with AVX2. Standard headers come before the target pragma, see args.h.
#include "args.h"

#if DYDIFF_X86
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define DYDIFF_ISA avx2
#define DYDIFF_KERNEL(kernel, Args)  // module.cpp binds it
#include "simd_avx2.h"

#include "ops.h"
#pragma GCC pop_options
#endif
