// All kernels for one instruction set. The including file has set the target, DYDIFF_ISA and the vectors of simd_*.h.
#include "philox.h"
#include "rows.h"
// Ops build on the two above.
#include "frame_filter.h"
#include "normal.h"

namespace dydiff {
namespace DYDIFF_ISA {

constexpr KernelTable make_table(const char* isa) { return {isa, normal, frame_filter}; }

}  // namespace DYDIFF_ISA
}  // namespace dydiff
