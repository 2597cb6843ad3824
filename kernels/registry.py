"""The registry of ops: what an op consists of, and the one visible choice of what runs it.

An op is a torch reference, which is its specification, and kernels that can take its place:

    SCALE = register_op("scale", reference=scale_reference, triton="my_package.scale_kernel:scale")

    def scale(x, factor, *, backend="auto"):
        return SCALE.select(backend, [x])(x, factor)

``auto`` never fails: where a kernel cannot run the reference does, and the log says so once per op on the logger
``dydiff_kernels``. A backend asked for by name either runs or is a ``ValueError``; only float64 goes to the reference
anyway.
"""

import functools
import logging
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dydiff_kernels import backends

logger = logging.getLogger("dydiff_kernels")

_resolve = functools.cache(pkgutil.resolve_name)


@functools.cache
def _log_once(level: int, message: str) -> None:
    logger.log(level, message)


class Operands(NamedTuple):
    """What the kernels of an op take, in C++ and in Triton under the same names."""

    like: torch.Tensor
    """A tensor (B, S, *rest) of the operands' shape and device."""
    writes: Mapping[str, torch.Tensor | None]
    """Results; None is not wanted."""
    others: Mapping[str, Any]
    """Tensors like ``like``, noise as tensors or counters, None, numbers, flags, lists of a table's columns (B,)."""


class Passes(NamedTuple):
    """The kernels of a differentiable op: functions of tensors that know nothing of autograd."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


@dataclass(frozen=True)
class Op:
    """An op and everything that belongs to it; made by ``register_op``, which explains the fields."""

    name: str
    reference: Callable[..., Any]
    cpp: Callable[..., Any] | Passes | None
    triton: Callable[..., Any] | Passes | str | None
    differentiable: bool
    aot_cases: str | None
    benchmarks: str | None

    def select(self, backend: str, inputs: Iterable[object], dtype: torch.dtype | None = None) -> Any:
        """The implementation that runs a call, and a line in the log the first time it is chosen.

        Args:
            backend: what the caller asks for, one of ``BACKENDS``.
            inputs: the call's arguments, at least one of them a tensor; its device decides, float64 among them sends
                the op to the reference. What is no tensor is passed over.
            dtype: storage type of the results, where it may differ from that of the inputs.

        Raises:
            ValueError: ``backend`` is unknown, or was asked for by name and cannot run here.
        """
        if backend not in backends.BACKENDS:
            raise ValueError(f"backend={backend!r} is unknown; use one of {', '.join(backends.BACKENDS)}")
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        device = tensors[0].device
        if backend == "reference":
            return self._chosen("reference", device)
        if torch.float64 in (dtype, *(t.dtype for t in tensors)):
            self._say(logging.INFO, "float64 tensors run on the torch reference (kernels calculate in float32)")
            return self.reference
        if not self.differentiable and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            if backend != "auto":
                raise ValueError(
                    f"{self.name}: an input requires a gradient, which the {backend} kernel does not pass on; "
                    "detach it, use torch.no_grad(), or backend='auto'"
                )
            self._say(logging.INFO, "inputs that require a gradient run on the torch reference")
            return self.reference
        kernel = _kernel(backend, device)
        if getattr(self, kernel) is None:
            if backend != "auto":
                raise ValueError(f"{self.name}: backend={backend!r} has no kernel of this op; use backend='auto'")
            return self._chosen("reference", device)
        refusal = backends.REFUSALS[kernel](device)
        if refusal is None:
            return self._chosen(kernel, device)
        if backend != "auto":
            raise self._cannot_run(backend, refusal)
        self._say(
            logging.WARNING, f"the {kernel} kernel is refused: {refusal}. The slower torch reference runs instead"
        )
        return self.reference

    def has_kernel(self, backend: str, inputs: Iterable[object]) -> bool:
        """Whether `select` would choose a kernel for these inputs; without a word, so that torch.compile traces it.

        Raises:
            ValueError: as `select`, where ``backend`` was asked for by name and cannot run here.
        """
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        if backend == "reference" or any(t.dtype == torch.float64 for t in tensors):
            return False
        kernel = "triton" if _as_on_gpu else _kernel(backend, tensors[0].device)
        if _as_on_gpu or getattr(self, kernel) is None:
            return getattr(self, kernel) is not None
        refusal = backends.REFUSALS[kernel](tensors[0].device)
        if refusal is not None and backend != "auto":
            raise self._cannot_run(backend, refusal)
        return refusal is None

    def _cannot_run(self, backend: str, refusal: str) -> ValueError:
        return ValueError(f"{self.name}: backend={backend!r} cannot run here: {refusal}; or use backend='auto'")

    def _say(self, level: int, message: str) -> None:
        _log_once(level, f"{self.name}: {message}")

    def _chosen(self, kernel: str, device: torch.device) -> Any:
        cpp = backends.cpp_module()
        detail = f" ({cpp.isa()} instructions)" if kernel == "cpp" and cpp is not None else ""
        self._say(logging.INFO, f"runs on the {kernel} backend{detail}, device {device.type}")
        implementation = getattr(self, kernel)
        return _resolve(implementation) if isinstance(implementation, str) else implementation


def _kernel(backend: str, device: torch.device) -> str:
    """The kernel that a backend means on a device."""
    return backend if backend != "auto" else ("triton" if device.type == "cuda" else "cpp")


_as_on_gpu = False


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Within, ops with Triton kernels and custom operations run as those: for tensors that have shapes and no content,
    to count what a GPU would run."""
    global _as_on_gpu
    _as_on_gpu = True
    try:
        yield
    finally:
        _as_on_gpu = False


def runs_as_custom_op() -> bool:
    """Whether a call is looked at and not run: by torch.compile, or within `as_on_gpu`."""
    return torch.compiler.is_compiling() or _as_on_gpu


_OPS: dict[str, Op] = {}


def register_op(
    name: str,
    *,
    reference: Callable[..., Any],
    cpp: Callable[..., Any] | Passes | None = None,
    triton: Callable[..., Any] | Passes | str | None = None,
    differentiable: bool = False,
    aot_cases: str | None = None,
    benchmarks: str | None = None,
) -> Op:
    """Registers an op, of this package or of another.

    Args:
        name: the op's name, for the log, errors and the benchmark.
        reference: plain torch, the specification; differentiable and able to calculate in float64.
        cpp: the CPU kernel, any function that the op's own code can call in the place of ``reference``; without one the
            reference is what CPUs run.
        triton: the same for GPUs. As ``"module:function"`` it is imported when it is first chosen, so that machines
            without Triton can import the op.
        differentiable: whether the kernels pass gradients on. If not, inputs that require one go to the reference.
        aot_cases: ``"module:NAME"`` of a list of ``gpu.AotCase``, what ``dydiff_kernels.aot`` compiles ahead of time.
        benchmarks: ``"module:NAME"`` of a list of ``benchmark.cases.BenchmarkCase`` for ``tools/bench_kernels.py``.

    Returns:
        The op; its ``select`` chooses what runs a call.

    Raises:
        ValueError: an op of this name is there already.

    Examples:
        >>> DOUBLE = register_op("double", reference=lambda x: 2 * x)
        >>> DOUBLE.select("auto", [torch.ones(2)])(torch.ones(2))
        tensor([2., 2.])
    """
    if name in _OPS:
        raise ValueError(f"register_op: an op named {name!r} is there already; choose another name")
    _OPS[name] = Op(name, reference, cpp, triton, differentiable, aot_cases, benchmarks)
    return _OPS[name]


def collect(field: str) -> list[Any]:
    """The entries of ``aot_cases`` or ``benchmarks`` of all ops, imported now."""
    names = [getattr(op, field) for op in _OPS.values()]
    return [case for name in dict.fromkeys(names) if name is not None for case in _resolve(name)]
