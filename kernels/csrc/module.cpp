// The Python module dydiff_kernels._cpu. Pointers come as integers; shapes, dtypes and strides are validated in Python.
// No function touches a Python object once it runs, so all release the interpreter lock.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "args.h"
#include "dispatch.h"

namespace py = pybind11;
using namespace dydiff;

namespace {

const float* floats(uintptr_t pointer) { return reinterpret_cast<const float*>(pointer); }

void normal(const NoiseKey& noise, int64_t batch, int64_t per_sample, uintptr_t out, int dtype, int threads) {
    kernels().normal(noise, {batch, 1, per_sample}, {out, DType(dtype), per_sample, per_sample}, threads);
}

void frame_filter(int kind, const Shape& shape, uintptr_t coefficients, const FrameView& x, const FrameView& out,
                  int threads) {
    kernels().frame_filter(FrameFilter(kind), shape, floats(coefficients), x, out, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    const py::call_guard<py::gil_scoped_release> released;
    py::class_<Shape>(m, "Shape").def(py::init([](int64_t batch, int64_t frames, int64_t inner) {
        return Shape{batch, frames, inner};
    }));
    py::class_<FrameView>(m, "FrameView")
        .def(py::init<>())
        .def(py::init([](uintptr_t data, int dtype, int64_t stride_batch, int64_t stride_frame) {
            return FrameView{data, DType(dtype), stride_batch, stride_frame};
        }));
    py::class_<NoiseKey>(m, "NoiseKey")
        .def(py::init<>())
        .def(py::init([](uint64_t seed, uint32_t step, uint32_t stream, uintptr_t sample_index) {
            return NoiseKey{seed, step, stream, sample_index};
        }));
    m.def("isa", [] { return std::string(kernels().isa); });
    m.def("available_isas", &available_isas);
    m.def("set_isa", &set_isa);
    m.def("normal", &normal, released);
    m.def("frame_filter", &frame_filter, released);
}
