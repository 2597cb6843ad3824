// The choice of an instruction set at run time.
#pragma once
#include <string>
#include <vector>

namespace dydiff {

enum class Isa : int { portable, avx2, avx512 };

// Instruction sets that this processor has kernels for, best first; "portable" always closes the list.
std::vector<std::string> available_isas();

// The one in use: the best one, or the one last named by set_isa.
Isa current_isa();
std::string isa_name();

// Uses the kernels of `isa` from now on, for tests and measurements. Throws std::invalid_argument if it is not available.
void set_isa(const std::string& isa);

}  // namespace dydiff
