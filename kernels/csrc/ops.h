// All kernels for one instruction set. The including file has set the target, DYDIFF_ISA and the vectors of simd_*.h.
#include "philox.h"
#include "rows.h"
// Ops build on the two above, and on the rows' mixing and unmixing in frame_filter.h.
#include "frame_filter.h"
// The rest need only those.
#include "add_noise.h"
#include "denoising_loss.h"
#include "modulation.h"
#include "normal.h"
#include "reverse_step.h"

namespace dydiff {
namespace DYDIFF_ISA {

constexpr KernelTable make_table(const char* isa) {
    return {isa,          normal,   frame_filter,      add_noise,    loss_forward, loss_backward,
            reverse_step, modulate, modulate_backward, gate_backward};
}

}  // namespace DYDIFF_ISA
}  // namespace dydiff
