// The Python module dydiff_kernels._cpu, and the portable kernels. Pointers come as integers; shapes, dtypes and strides
// are validated in Python. No kernel touches a Python object, so all release the interpreter lock.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "args.h"
#include "isa.h"

namespace py = pybind11;

namespace dydiff {
namespace {

using Binding = void (*)(py::module_&);

// What the ops' headers register below, before the module is made.
std::vector<Binding>& bindings() {
    static std::vector<Binding> all;
    return all;
}

// Adds the struct Args with its members, once, and `<name>_args()`, which makes one, and the kernel.
template <class Args>
void bind_kernel(py::module_& m, const char* name, const char* args_name, void (*kernel)(const Args&, int)) {
    if (!py::hasattr(m, args_name)) {
        py::class_<Args> bound(m, args_name);
        Args::members([&](const char* member, auto pointer) { bound.def_readwrite(member, pointer); });
    }
    m.def((std::string(name) + "_args").c_str(), [] { return Args{}; });
    m.def(name, kernel, py::call_guard<py::gil_scoped_release>());
}

}  // namespace
}  // namespace dydiff

#if DYDIFF_X86
#define DYDIFF_RUN_X86(kernel, args, threads)                              \
    if (current_isa() == Isa::avx512) return avx512::kernel(args, threads); \
    if (current_isa() == Isa::avx2) return avx2::kernel(args, threads);
#else
#define DYDIFF_RUN_X86(kernel, args, threads)
#endif

// In namespace dydiff: a function of the kernel's name that runs it on the instruction set in use, and its binding.
#define DYDIFF_KERNEL(kernel, Args)                                             \
    namespace avx2 {                                                            \
    void kernel(const Args&, int);                                              \
    }                                                                           \
    namespace avx512 {                                                          \
    void kernel(const Args&, int);                                              \
    }                                                                           \
    static void run_##kernel(const Args& args, int threads) {                   \
        DYDIFF_RUN_X86(kernel, args, threads)                                   \
        portable::kernel(args, threads);                                        \
    }                                                                           \
    static const auto& bound_##kernel = bindings().emplace_back(                \
        [](py::module_& m) { bind_kernel<Args>(m, #kernel, #Args, run_##kernel); });

#define DYDIFF_ISA portable
#include "simd_portable.h"

#include "ops.h"

namespace {

// Asks Linux for huge pages in memory that is about to be written for the first time. Advice: failure changes nothing.
void advise_huge_pages(uintptr_t data, int64_t bytes) {
#ifdef __linux__
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (data + page - 1) / page * page, end = (data + uintptr_t(bytes)) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    using namespace dydiff;
    py::class_<Shape>(m, "Shape").def(py::init([](int64_t batch, int64_t frames, int64_t inner) {
        return Shape{batch, frames, inner};
    }));
    py::class_<FrameView>(m, "FrameView")
        .def(py::init([](uintptr_t data, int dtype, int64_t stride_batch, int64_t stride_frame) {
            return FrameView{data, DType(dtype), stride_batch, stride_frame};
        }));
    py::class_<TokenView>(m, "TokenView")
        .def(py::init([](uintptr_t data, int dtype, int64_t stride0, int64_t stride1, int64_t stride2) {
            return TokenView{data, DType(dtype), stride0, stride1, stride2};
        }));
    py::class_<NoiseSource>(m, "NoiseSource")
        .def(py::init([](uint64_t seed, uint32_t step, uint32_t stream, uintptr_t sample_index) {
            return NoiseSource{seed, step, stream, sample_index, {}};
        }))
        .def(py::init([](const FrameView& given) { return NoiseSource{0, 0, 0, 0, given}; }));
    py::implicitly_convertible<FrameView, NoiseSource>();
    for (const Binding binding : bindings()) binding(m);
    m.attr("sources") = DYDIFF_SOURCES;  // their digest, of setup.py
    m.def("isa", &isa_name);
    m.def("available_isas", &available_isas);
    m.def("set_isa", &set_isa);
    m.def("advise_huge_pages", &advise_huge_pages);
}
