// The Python module dydiff_kernels._cpu. Pointers come as integers; shapes, dtypes and strides are validated in Python.
// No function touches a Python object once it runs, so all release the interpreter lock.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

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

void add_noise(const AddNoiseArgs& args, int threads) { kernels().add_noise(args, threads); }

void loss_forward(const LossArgs& args, int threads) { kernels().loss_forward(args, threads); }

void loss_backward(const LossArgs& args, int threads) { kernels().loss_backward(args, threads); }

void reverse_step(const ReverseStepArgs& args, int threads) { kernels().reverse_step(args, threads); }

void modulate(const ModulationArgs& args, int threads) { kernels().modulate(args, threads); }

void modulate_backward(const ModulationArgs& args, int threads) { kernels().modulate_backward(args, threads); }

void gate_backward(const GateArgs& args, int threads) { kernels().gate_backward(args, threads); }

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
    py::class_<NoiseSource>(m, "NoiseSource").def(py::init([](const NoiseKey& key, const FrameView& given) {
        return NoiseSource{key, given};
    }));
    py::enum_<Prediction>(m, "Prediction")
        .value("eps", Prediction::eps)
        .value("v", Prediction::v)
        .value("x0", Prediction::x0);
    py::class_<AddNoiseArgs>(m, "AddNoiseArgs")
        .def(py::init<>())
        .def_readwrite("shape", &AddNoiseArgs::shape)
        .def_readwrite("coefficients", &AddNoiseArgs::coefficients)
        .def_readwrite("prediction", &AddNoiseArgs::prediction)
        .def_readwrite("latents", &AddNoiseArgs::latents)
        .def_readwrite("logvar", &AddNoiseArgs::logvar)
        .def_readwrite("posterior_noise", &AddNoiseArgs::posterior_noise)
        .def_readwrite("scale", &AddNoiseArgs::scale)
        .def_readwrite("noise", &AddNoiseArgs::noise)
        .def_readwrite("z", &AddNoiseArgs::z)
        .def_readwrite("target", &AddNoiseArgs::target)
        .def_readwrite("x0", &AddNoiseArgs::x0);
    py::class_<LossArgs>(m, "LossArgs")
        .def(py::init<>())
        .def_readwrite("shape", &LossArgs::shape)
        .def_readwrite("output", &LossArgs::output)
        .def_readwrite("target", &LossArgs::target)
        .def_readwrite("noise", &LossArgs::noise)
        .def_readwrite("coefficients", &LossArgs::coefficients)
        .def_readwrite("weights", &LossArgs::weights)
        .def_readwrite("loss", &LossArgs::loss)
        .def_readwrite("grad", &LossArgs::grad);
    py::class_<ReverseStepArgs>(m, "ReverseStepArgs")
        .def(py::init<>())
        .def_readwrite("shape", &ReverseStepArgs::shape)
        .def_readwrite("coefficients", &ReverseStepArgs::coefficients)
        .def_readwrite("prediction", &ReverseStepArgs::prediction)
        .def_readwrite("dependent_noise", &ReverseStepArgs::dependent_noise)
        .def_readwrite("z", &ReverseStepArgs::z)
        .def_readwrite("output", &ReverseStepArgs::output)
        .def_readwrite("uncond_output", &ReverseStepArgs::uncond_output)
        .def_readwrite("x0_prev", &ReverseStepArgs::x0_prev)
        .def_readwrite("history", &ReverseStepArgs::history)
        .def_readwrite("history_frames", &ReverseStepArgs::history_frames)
        .def_readwrite("noise", &ReverseStepArgs::noise)
        .def_readwrite("z_next", &ReverseStepArgs::z_next)
        .def_readwrite("x0", &ReverseStepArgs::x0);
    py::class_<ModulationArgs>(m, "ModulationArgs")
        .def(py::init<>())
        .def_readwrite("shape", &ModulationArgs::shape)
        .def_readwrite("epsilon", &ModulationArgs::epsilon)
        .def_readwrite("x", &ModulationArgs::x)
        .def_readwrite("shift", &ModulationArgs::shift)
        .def_readwrite("scale", &ModulationArgs::scale)
        .def_readwrite("statistics", &ModulationArgs::statistics)
        .def_readwrite("out", &ModulationArgs::out)
        .def_readwrite("grad_out", &ModulationArgs::grad_out)
        .def_readwrite("grad_x", &ModulationArgs::grad_x)
        .def_readwrite("grad_shift", &ModulationArgs::grad_shift)
        .def_readwrite("grad_scale", &ModulationArgs::grad_scale);
    py::class_<GateArgs>(m, "GateArgs")
        .def(py::init<>())
        .def_readwrite("shape", &GateArgs::shape)
        .def_readwrite("branch", &GateArgs::branch)
        .def_readwrite("gate", &GateArgs::gate)
        .def_readwrite("grad_out", &GateArgs::grad_out)
        .def_readwrite("grad_branch", &GateArgs::grad_branch)
        .def_readwrite("grad_gate", &GateArgs::grad_gate);
    m.attr("MAX_CHANNELS") = MAX_CHANNELS;
    m.def("isa", [] { return std::string(kernels().isa); });
    m.def("available_isas", &available_isas);
    m.def("set_isa", &set_isa);
    m.def("advise_huge_pages", &advise_huge_pages);
    m.def("normal", &normal, released);
    m.def("frame_filter", &frame_filter, released);
    m.def("add_noise", &add_noise, released);
    m.def("loss_forward", &loss_forward, released);
    m.def("loss_backward", &loss_backward, released);
    m.def("reverse_step", &reverse_step, released);
    m.def("modulate", &modulate, released);
    m.def("modulate_backward", &modulate_backward, released);
    m.def("gate_backward", &gate_backward, released);
}
