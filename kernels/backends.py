"""Which backends there are, and why one cannot run on a device. The choice among them is ``registry.Op.select``."""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Literal

import torch

_cpu: ModuleType | None = None
_cpu_import_error = ""
try:
    _cpu = importlib.import_module("dydiff_kernels._cpu")
except ImportError as error:
    _cpu_import_error = str(error)

# Known before torch.compile traces what asks for it.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

Backend = Literal["auto", "triton", "cpp", "reference"]
BACKENDS: tuple[str, ...] = ("auto", "triton", "cpp", "reference")


def cpp_module() -> ModuleType | None:
    """The compiled extension, or None where it was not built (no compiler at install time)."""
    return _cpu


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter."""
    return _INTERPRETED


def cpp_refusal(device: torch.device) -> str | None:
    """Why the C++ kernels cannot run on ``device``; None if they can."""
    if device.type != "cpu":
        return f"tensors are on {device}, the cpp backend needs them on the CPU"
    if _cpu is None:
        return (
            f"the C++ extension is not there ({_cpu_import_error}); install a C++17 compiler "
            "(Debian: apt-get install g++) and reinstall dydiff_dist"
        )
    return None


def triton_refusal(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on ``device``; None if they can. The interpreter counts as a GPU."""
    if not _HAS_TRITON:
        return "triton is not installed; pip install triton"
    if device.type == "cuda" or _INTERPRETED:
        return None
    return f"tensors are on {device}, the triton backend needs a CUDA device (or TRITON_INTERPRET=1)"


REFUSALS = {"cpp": cpp_refusal, "triton": triton_refusal}


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Names of the backends that can run on ``device``, best first."""
    device = torch.device(device)
    preferred = ("triton", "cpp") if device.type == "cuda" else ("cpp", "triton")
    return (*(name for name in preferred if REFUSALS[name](device) is None), "reference")
