// The choice of an instruction set at run time.
#pragma once
#include <string>
#include <vector>

#include "kernel_table.h"

namespace dydiff {

// Instruction sets that this processor has kernels for, best first; "portable" always closes the list.
std::vector<std::string> available_isas();

// The table in use: the best one, or the one last named by set_isa.
const KernelTable& kernels();

// Uses the kernels of `isa` from now on, for tests and measurements. Throws std::invalid_argument if it is not available.
void set_isa(const std::string& isa);

}  // namespace dydiff
