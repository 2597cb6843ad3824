#include "isa.h"

#include <atomic>
#include <stdexcept>

#include "args.h"

namespace dydiff {
namespace {

const char* name_of(Isa isa) {
    return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

std::vector<Isa> usable_isas() {
    std::vector<Isa> isas;
#if DYDIFF_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        isas.push_back(Isa::avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        isas.push_back(Isa::avx2);
#endif
    isas.push_back(Isa::portable);
    return isas;
}

std::atomic<Isa>& isa_in_use() {
    static std::atomic<Isa> isa{usable_isas().front()};
    return isa;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Isa isa : usable_isas()) names.emplace_back(name_of(isa));
    return names;
}

Isa current_isa() { return isa_in_use().load(); }

std::string isa_name() { return name_of(current_isa()); }

void set_isa(const std::string& isa) {
    for (const Isa usable : usable_isas()) {
        if (isa == name_of(usable)) {
            isa_in_use().store(usable);
            return;
        }
    }
    throw std::invalid_argument("isa '" + isa + "' is not available on this processor");
}

}  // namespace dydiff
