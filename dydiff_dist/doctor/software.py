"""What is installed, and which implementation of each part would run."""

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator

import torch
from packaging.specifiers import SpecifierSet

from dydiff_dist.doctor.findings import Finding
from dydiff_dist.models.attention import resolve_attention, xformers_failure
from dydiff_kernels import available_backends
from dydiff_kernels.backends import REFUSALS

_PACKAGES = {
    "torch": ">= 2.11, < 2.16",
    "triton": ">= 3.6",
    "deepspeed": ">= 0.19.8, < 0.20",
    "webdataset": ">= 1.0.2, < 2",
    "numpy": ">= 2",
}
"""Required packages -> the versions that are known to work."""
_OPTIONAL = {"xformers": "attention on GPUs (pip install 'dydiff_dist[gpu]'); torch's own is used without it"}


def versions() -> dict[str, str]:
    """Version of Python and of each package that all machines of a run should share."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in (*_PACKAGES, *_OPTIONAL):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def packages() -> Iterator[Finding]:
    """Python and the packages, against the range that is supported."""
    found = versions()
    python = sys.version_info[:2]
    text, advice = f"{found['python']} ({sys.executable})", "3.11 and 3.12 are tested; make a new .venv"
    yield Finding("python", "ok" if python in ((3, 11), (3, 12)) else "warning", text, advice)
    for name, wanted in _PACKAGES.items():
        if found[name] == "absent":
            yield Finding(name, "problem", "not installed", "run make setup, and activate .venv")
            continue
        fits = SpecifierSet(wanted).contains(found[name], prereleases=True)
        yield Finding(name, "ok" if fits else "warning", found[name], f"{wanted} is tested; see constraints.txt")
    for name, use in _OPTIONAL.items():
        yield Finding(name, "ok", found[name] if found[name] != "absent" else f"absent: {use}")


def kernels() -> Iterator[Finding]:
    """The backend that ``auto`` means on this machine's device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backends = available_backends(device)
    if backends[0] == "reference":
        refusal = REFUSALS["cpp" if device == "cpu" else "triton"](torch.device(device))
        yield Finding("kernels", "warning", f"reference (slow) on {device}", refusal or "")
    else:
        yield Finding("kernels", "ok", f"{backends[0]} on {device} (also: {', '.join(backends[1:])})")


def attention() -> Iterator[Finding]:
    """The attention that ``auto`` means on this machine's device."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    chosen = resolve_attention("auto", device, dtype).__name__.removesuffix("_attention")
    if versions()["xformers"] != "absent" and device == "cuda" and (failure := xformers_failure(device, dtype, 64)):
        advice = "training takes torch's own; install the xformers that is built for this torch, or uninstall xformers"
        yield Finding("attention", "warning", f"{chosen} on {device}; xformers {failure}", advice)
    else:
        yield Finding("attention", "ok", f"{chosen} on {device}")


def programs() -> Iterator[Finding]:
    """Compilers and launchers that are in PATH."""
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    advice = "needed to build the C++ kernels and by torch.compile; Debian: apt-get install g++"
    yield Finding("compiler", "ok" if compiler else "warning", compiler or "no C++ compiler", advice)
    if torch.cuda.is_available():
        nvcc = shutil.which("nvcc")
        yield Finding("nvcc", "ok", nvcc or "absent; only DeepSpeed's own compiled optimizers need it")
    for name, use in (
        ("ssh", "deepspeed starts other machines through it; torchrun and srun don't need it"),
        ("pdsh", "deepspeed's launcher wants it for several machines; Debian: apt-get install pdsh"),
        ("srun", "only under Slurm"),
    ):
        path = shutil.which(name)
        yield Finding(name, "ok", path or f"absent: {use}")
