"""What GPUs can do, from their makers' data sheets; peaks without sparsity.

The log's utilisation and `tools/plan.py` divide by these numbers, so both mean the same by a peak.
"""

import re
from dataclasses import dataclass

_GB, _TFLOP = 1e9, 1e12


@dataclass(frozen=True, kw_only=True)
class GpuModel:
    """One kind of GPU, in a server of the usual kind."""

    name: str
    """Its name in the table."""
    pattern: str
    """Regular expression that finds it in the driver's name of the device."""
    half_flops: float
    """Peak of bf16 and fp16 matrix products with float32 sums, operations per second."""
    single_flops: float
    """Peak of float32 matrix products (torch's default: no TF32), operations per second."""
    memory_bytes: float
    """Device memory that a process can reach, about."""
    memory_bandwidth: float
    """Bytes per second of device memory."""
    link_bandwidth: float
    """Bytes per second and direction from one GPU to those of its server: NVLink, else PCIe."""
    host_bandwidth: float
    """Bytes per second and direction between a GPU and its host's memory."""
    network_bandwidth: float
    """Bytes per second and direction between servers, each GPU's share."""

    def peak_flops(self, precision: str) -> float:
        """Peak operations per second of matrix products in ``fp32``, ``bf16`` or ``fp16``."""
        return self.single_flops if precision == "fp32" else self.half_flops


def _gpu(name: str, pattern: str, numbers: tuple[float, ...]) -> GpuModel:
    half, single, memory_gib, memory, link, host, network = numbers
    return GpuModel(
        name=name,
        pattern=pattern,
        half_flops=half * _TFLOP,
        single_flops=single * _TFLOP,
        memory_bytes=memory_gib * 2**30,
        memory_bandwidth=memory * _GB,
        link_bandwidth=link * _GB,
        host_bandwidth=host * _GB,
        network_bandwidth=network * _GB,
    )


# TFLOP/s bf16, TFLOP/s fp32, GiB, and GB/s of memory, link (each way), host (each way), network (each way)
GPU_MODELS = {
    name: _gpu(name, pattern, numbers)
    for name, pattern, numbers in (
        ("b200", r"B200", (2250, 75, 178, 8000, 900, 64, 50)),
        ("h200", r"H200", (989.4, 66.9, 140, 4800, 450, 64, 50)),
        ("h100-pcie", r"H100 PCIe", (756, 51.2, 79, 2000, 64, 64, 25)),
        ("h100", r"H100", (989.4, 66.9, 79, 3350, 450, 64, 50)),
        ("a100-40gb", r"A100.*40GB", (312, 19.5, 39, 1555, 300, 32, 25)),
        ("a100", r"A100", (312, 19.5, 79, 2039, 300, 32, 25)),
        ("l40s", r"L40S", (362, 91.6, 44, 864, 32, 32, 12.5)),
        ("a10g", r"A10G", (70, 35, 22, 600, 32, 32, 6.25)),
        ("rtx-4090", r"RTX 4090", (165.2, 82.6, 23.5, 1008, 32, 32, 1.25)),
        ("v100", r"V100", (125, 15.7, 31, 900, 150, 16, 12.5)),
    )
}
"""Known GPUs by name; more special names stand before more general ones."""


def gpu_model(name: str) -> GpuModel:
    """The GPU called ``name`` in the table.

    Raises:
        ValueError: no such name; the message lists those there are.
    """
    if name not in GPU_MODELS:
        raise ValueError(f"GPU {name!r} is not in the table; known: {', '.join(GPU_MODELS)}")
    return GPU_MODELS[name]


def recognise_gpu(device_name: str) -> GpuModel | None:
    """The table's entry for a device as the driver names it, e.g. ``NVIDIA H100 80GB HBM3``; None if it has none."""
    return next((gpu for gpu in GPU_MODELS.values() if re.search(gpu.pattern, device_name)), None)
