// One table of kernels per instruction set; dispatch.cpp picks a table once, by what the processor can do.
#pragma once
#include "args.h"

namespace dydiff {

struct KernelTable {
    const char* isa;
    void (*normal)(const NoiseKey&, const Shape&, const FrameView& out, int threads);
    void (*frame_filter)(FrameFilter, const Shape&, const float* coefficients, const FrameView& x, const FrameView& out,
                         int threads);
    void (*add_noise)(const AddNoiseArgs&, int threads);
    void (*loss_forward)(const LossArgs&, int threads);
    void (*loss_backward)(const LossArgs&, int threads);
    void (*reverse_step)(const ReverseStepArgs&, int threads);
    void (*modulate)(const ModulationArgs&, int threads);
    void (*modulate_backward)(const ModulationArgs&, int threads);
    void (*gate_backward)(const GateArgs&, int threads);
};

const KernelTable* portable_kernels();
const KernelTable* avx2_kernels();    // null where the compiler or the target has no AVX2
const KernelTable* avx512_kernels();  // null where the compiler or the target has no AVX-512

}  // namespace dydiff
