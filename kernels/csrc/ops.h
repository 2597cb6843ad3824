// All ops, one line each. The including file has set DYDIFF_ISA, its target, the vectors of simd_*.h and DYDIFF_KERNEL.
#include "add_noise/add_noise.h"
#include "attention_inputs/attention_inputs.h"
#include "denoising_loss/denoising_loss.h"
#include "frame_mix/frame_mix.h"
#include "modulation/modulation.h"
#include "noise/normal.h"
#include "reverse_step/reverse_step.h"
