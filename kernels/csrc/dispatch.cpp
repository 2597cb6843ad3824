#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace dydiff {
namespace {

std::vector<const KernelTable*> available_tables() {
    std::vector<const KernelTable*> tables;
#if defined(__x86_64__) && defined(__GNUC__)
    if (avx512_kernels() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        tables.push_back(avx512_kernels());
    if (avx2_kernels() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        tables.push_back(avx2_kernels());
#endif
    tables.push_back(portable_kernels());
    return tables;
}

std::atomic<const KernelTable*>& current_table() {
    static std::atomic<const KernelTable*> table{available_tables().front()};
    return table;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const KernelTable* table : available_tables()) names.emplace_back(table->isa);
    return names;
}

const KernelTable& kernels() { return *current_table().load(); }

void set_isa(const std::string& isa) {
    for (const KernelTable* table : available_tables()) {
        if (isa == table->isa) {
            current_table().store(table);
            return;
        }
    }
    throw std::invalid_argument("isa '" + isa + "' is not available on this processor");
}

}  // namespace dydiff
