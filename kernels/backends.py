"""Which backend runs an op: the one visible choice, made by ``choose_backend`` and logged once per op.

``auto`` never fails: where a kernel cannot run, the torch reference does, and one warning names the op and
the reason. A backend asked for by name either runs or is a ``ValueError``; only float64 goes to the reference anyway.
"""

import functools
import importlib
import importlib.util
import logging
import os
from typing import Literal

import torch

try:
    _cpu = importlib.import_module("dydiff_kernels._cpu")
except ImportError as error:
    _cpu = None
    _cpu_import_error = str(error)

logger = logging.getLogger("dydiff_kernels")

Backend = Literal["auto", "triton", "cpp", "reference"]
BACKENDS: tuple[str, ...] = ("auto", "triton", "cpp", "reference")


@functools.cache
def _log_once(level: int, message: str) -> None:
    logger.log(level, message)


def cpp_module():
    """The compiled extension, or None where it was not built (no compiler at install time)."""
    return _cpu


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
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"tensors are on {device}, the triton backend needs a CUDA device (or TRITON_INTERPRET=1)"


_REFUSALS = {"cpp": cpp_refusal, "triton": triton_refusal}


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Names of the backends that can run on ``device``, best first."""
    device = torch.device(device)
    preferred = ("triton", "cpp") if device.type == "cuda" else ("cpp", "triton")
    return (*(name for name in preferred if _REFUSALS[name](device) is None), "reference")


def choose_backend(
    op: str, backend: str, device: torch.device, dtypes: tuple[torch.dtype, ...], *, has_triton: bool = True
) -> str:
    """The backend that runs ``op``: ``triton``, ``cpp`` or ``reference``.

    Args:
        op: the op's name, for the log and for errors.
        backend: what the caller asked for, one of ``BACKENDS``.
        device: where the op's tensors are.
        dtypes: their storage types; any float64 sends the op to the reference.
        has_triton: False for an op that has no Triton kernel: on GPUs torch's own operations are its implementation.

    Raises:
        ValueError: ``backend`` is unknown, or was asked for by name and cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return _chosen(op, "reference", device)
    if torch.float64 in dtypes:
        _log_once(logging.INFO, f"{op}: float64 tensors run on the torch reference (kernels calculate in float32)")
        return "reference"
    kernel = backend if backend != "auto" else ("triton" if device.type == "cuda" else "cpp")
    if kernel == "triton" and not has_triton:
        if backend == "triton":
            raise ValueError(f"{op}: backend='triton' has no kernel of this op; use backend='auto'")
        return _chosen(op, "reference", device)
    refusal = _REFUSALS[kernel](device)
    if refusal is None:
        return _chosen(op, kernel, device)
    if backend != "auto":
        raise ValueError(f"{op}: backend={backend!r} cannot run here: {refusal}; or use backend='auto'")
    _log_once(
        logging.WARNING, f"{op}: the {kernel} kernel is refused: {refusal}. The slower torch reference runs instead"
    )
    return "reference"


def _chosen(op: str, name: str, device: torch.device) -> str:
    detail = f" ({_cpu.isa()} instructions)" if name == "cpp" else ""
    _log_once(logging.INFO, f"{op}: runs on the {name} backend{detail}, device {device.type}")
    return name
