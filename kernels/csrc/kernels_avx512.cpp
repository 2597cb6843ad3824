// Kernels for x86-64 processors with AVX-512 (F, BW, DQ, VL). Standard headers come before the target pragma, see args.h.
#include "args.h"

#if DYDIFF_X86
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define DYDIFF_ISA avx512
#define DYDIFF_KERNEL(kernel, Args)  // module.cpp binds it
#include "simd_avx512.h"

#include "ops.h"
#pragma GCC pop_options
#endif
