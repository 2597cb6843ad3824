"""``frame_mix`` in the benchmark."""

from dydiff_kernels.benchmark.cases import BenchmarkCase, ramp
from dydiff_kernels.frame_mix import frame_mix
from dydiff_kernels.frame_mix.reference import frame_mix_reference

BENCHMARKS = [
    BenchmarkCase(
        "frame_mix",
        tensors_moved=2,
        parameters=lambda shape, dtype, device: ramp(0.5, 0.9, shape[0], device),
        eager=lambda i, gamma_bar: frame_mix_reference(i.x, gamma_bar),
        fresh=lambda i, gamma_bar, backend: frame_mix(i.x, gamma_bar, backend=backend),
        reusing=lambda i, gamma_bar, backend: frame_mix(i.out, gamma_bar, backend=backend, inplace=True),
    )
]
