// Kernels for any processor.
#include "kernel_table.h"

#define DYDIFF_ISA portable
#include "simd_portable.h"

#include "ops.h"

namespace dydiff {
const KernelTable* portable_kernels() {
    static constexpr KernelTable table = portable::make_table("portable");
    return &table;
}
}  // namespace dydiff
