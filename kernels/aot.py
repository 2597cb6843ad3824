"""Ahead-of-time compilation of every Triton kernel, and what the compiler made of it; needs no GPU.

``python -m dydiff_kernels.aot [FILE]`` compiles all cases for sm_80 and sm_90 and writes one CSV row each: registers,
spilled bytes a thread, shared memory, and how tensors are read and written. It shows that the kernels compile, that
they do not spill and that they move 128 bits at a time; not that they are right (the tests do) nor how fast they are.
"""

import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dydiff_kernels.add_noise.triton_kernel import _add_noise_kernel
from dydiff_kernels.denoising_loss.triton_kernel import _denoising_loss_kernel
from dydiff_kernels.frame_mix.triton_kernel import _frame_filter_kernel
from dydiff_kernels.gpu import MAX_BLOCK, NUM_WARPS
from dydiff_kernels.noise.triton_kernel import _normal_kernel
from dydiff_kernels.reverse_step.triton_kernel import _reverse_step_kernel

ARCHITECTURES = (80, 90)
STORAGE = ("fp32", "bf16", "fp16")
_FIXED_TYPES = {
    "table_ptr": "*fp32",
    "weights_ptr": "*fp32",
    "partial_ptr": "*fp32",
    "noise_index_ptr": "*i64",
    "posterior_index_ptr": "*i64",
    "scale": "fp32",
}
_COUNTER = ("noise_index_ptr",)


@dataclass(frozen=True)
class Case:
    """One specialisation of a kernel: which pointers are present, and the compile-time constants."""

    name: str
    kernel: Callable
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    scalars: tuple[str, ...] = ("table_ptr",)
    constants: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """A row of the table. Loads and stores are instructions of one program; ``scalar_*`` move less than 128 bits."""

    triton: str
    kernel: str
    storage: str
    arch: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    vector_loads: int
    scalar_loads: int
    vector_stores: int
    scalar_stores: int


def _reverse_case(
    name: str, optional: tuple[str, ...], scalars: tuple[str, ...], x0: tuple[str, ...] = (), dependent=True
):
    constants = dict(IS_X0=False, DEPENDENT=dependent, ALIGNED=True)
    reads = ("z_ptr", "output_ptr", *optional)
    return Case(name, _reverse_step_kernel, reads, ("z_next_ptr", *x0), ("table_ptr", *scalars), constants)


def cases() -> list[Case]:
    """Every kernel in the forms that training and sampling use."""
    aligned = dict(ALIGNED=True)
    noising = dict(PREDICTION=1, **aligned)
    drawn = ("table_ptr", *_COUNTER)
    loss = ("weights_ptr",)
    drawn_loss = (*drawn, "weights_ptr")
    filters = ("frame_mix", "frame_unmix", "frame_mix_transposed", "frame_unmix_transposed")
    return [
        Case("normal", _normal_kernel, (), ("out_ptr",), _COUNTER, aligned),
        *(
            Case(name, _frame_filter_kernel, ("x_ptr",), ("out_ptr",), constants=dict(KIND=kind))
            for kind, name in enumerate(filters)
        ),
        Case("add_noise", _add_noise_kernel, ("x_ptr",), ("z_ptr", "target_ptr"), drawn, noising),
        Case("add_noise_given", _add_noise_kernel, ("x_ptr", "noise_ptr"), ("z_ptr", "target_ptr"), constants=noising),
        Case(
            "add_noise_posterior",
            _add_noise_kernel,
            ("x_ptr", "logvar_ptr"),
            ("z_ptr", "target_ptr", "x0_ptr"),
            (*drawn, "posterior_index_ptr"),
            noising,
        ),
        Case("loss_forward", _denoising_loss_kernel, ("output_ptr", "target_ptr"), (), (*loss, "partial_ptr"), aligned),
        Case("loss_backward", _denoising_loss_kernel, ("output_ptr", "target_ptr"), ("grad_ptr",), loss, aligned),
        Case("loss_forward_drawn", _denoising_loss_kernel, ("output_ptr",), (), (*drawn_loss, "partial_ptr"), aligned),
        Case("loss_backward_drawn", _denoising_loss_kernel, ("output_ptr",), ("grad_ptr",), drawn_loss, aligned),
        _reverse_case("reverse_step", (), ()),
        _reverse_case("reverse_step_noise", (), _COUNTER),
        _reverse_case("reverse_step_multistep", ("x0_prev_ptr",), (), x0=("x0_ptr",)),
        _reverse_case(
            "reverse_step_full", ("uncond_ptr", "x0_prev_ptr", "history_ptr"), _COUNTER, x0=("x0_ptr",)
        ),
        _reverse_case("reverse_step_independent", ("history_ptr",), _COUNTER, dependent=False),
    ]  # fmt: skip


def compile_case(case: Case, storage: str, arch: int, **other_constants):
    """The compiled kernel, specialised as a launch with frames of a multiple of 16 elements specialises it.

    ``other_constants`` replace compile-time constants or fix sizes (a launch fixes those that are 1).
    """
    constants = {**case.constants, "BLOCK": MAX_BLOCK, **other_constants}
    signature, attributes = {}, {}
    for position, name in enumerate(case.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            present = name in case.reads or name in case.writes or name in case.scalars
            signature[name] = _FIXED_TYPES.get(name, f"*{storage}") if present else "constexpr"
            if not present:
                constants[name] = None
        else:
            signature[name] = _FIXED_TYPES.get(name, "i32")
        if signature[name] != "constexpr" and (name.endswith("_ptr") or name == "R"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(num_warps=NUM_WARPS))


def _count(ptx: str, direction: str) -> tuple[int, int]:
    """Global loads or stores in the PTX: (of 128 bits, of less)."""
    found = re.findall(rf"\b{direction}\.global[.\w:]*", ptx)
    vector = [name for name in found if ".v4.b32" in name or ".v2.b64" in name]
    return len(vector), len(found) - len(vector)


def _register_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, spilled bytes) a thread, from the compiled binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def resources(case: Case, storage: str, arch: int) -> Resources:
    """Compiles one case and measures it."""
    compiled = compile_case(case, storage, arch)
    registers, spilled = _register_usage(compiled.asm["cubin"])
    loads, stores = _count(compiled.asm["ptx"], "ld"), _count(compiled.asm["ptx"], "st")
    shared = compiled.metadata.shared
    return Resources(triton.__version__, case.name, storage, f"sm_{arch}", registers, spilled, shared, *loads, *stores)


def all_resources() -> Iterator[Resources]:
    """A row for every kernel, storage type and architecture."""
    for case in cases():
        for storage in STORAGE:
            for arch in ARCHITECTURES:
                yield resources(case, storage, arch)


def main() -> None:
    """Writes the table to the file named on the command line, or to standard output."""
    rows = [asdict(row) for row in all_resources()]
    with open(sys.argv[1], "w", newline="") if len(sys.argv) > 1 else sys.stdout as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
