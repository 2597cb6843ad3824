"""The table of GPUs, and finding a device in it."""

import pytest

from dydiff_dist.hardware import gpu_model, recognise_gpu


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla V100-SXM2-32GB", "v100"),
    ],
)
def test_devices_are_recognised_by_the_drivers_name(device_name, name):
    assert recognise_gpu(device_name) is gpu_model(name)


def test_unknown_devices():
    assert recognise_gpu("NVIDIA GeForce GT 710") is None
    with pytest.raises(ValueError, match="GPU 'h1000' is not in the table; known: b200"):
        gpu_model("h1000")


def test_peaks_by_precision():
    h100 = gpu_model("h100")
    assert h100.peak_flops("bf16") == h100.peak_flops("fp16") == 989.4e12 > h100.peak_flops("fp32")
