"""Which backends there are, and why one cannot run on a device. The choice among them is ``registry.Op.select``."""

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch

from dydiff_kernels.sources import sources_sha256


def _load_cpp() -> tuple[ModuleType | None, str | None]:
    """The compiled extension, or why there is none."""
    try:
        module = importlib.import_module("dydiff_kernels._cpu")
    except ImportError as error:
        return None, (
            f"the C++ extension is not there ({error}); install a C++17 compiler (Debian: apt-get install g++) and "
            "reinstall dydiff_dist"
        )
    here = sources_sha256(Path(__file__).parent)
    if here and getattr(module, "sources", None) != here:
        return None, (
            "the compiled C++ kernels were built from other sources than are here, as before a git pull; build them "
            "again (pip install -e .)"
        )
    return module, None


_cpu, _cpu_refusal = _load_cpp()

# Known before torch.compile traces what asks for it.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

Backend = Literal["auto", "triton", "cpp", "reference"]
BACKENDS: tuple[str, ...] = ("auto", "triton", "cpp", "reference")


def cpp_module() -> ModuleType | None:
    """The compiled extension, or None where it was not built (no compiler at install time) or from other sources."""
    return _cpu


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter."""
    return _INTERPRETED


def cpp_refusal(device: torch.device) -> str | None:
    """Why the C++ kernels cannot run on ``device``; None if they can."""
    if device.type != "cpu":
        return f"tensors are on {device}, the cpp backend needs them on the CPU"
    return _cpu_refusal


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
