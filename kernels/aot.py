"""Ahead-of-time compilation of every Triton kernel, and what the compiler made of it; needs no GPU.

``python -m dydiff_kernels.aot [FILE]`` compiles all cases for sm_80 and sm_90 and writes one CSV row each: registers,
spilled bytes a thread, shared memory, and how tensors are read and written. It shows that the kernels compile, that
they do not spill and that they move 128 bits at a time; not that they are right (the tests do) nor how fast they are.
"""

import csv
import itertools
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import dydiff_kernels  # noqa: F401  the ops register their cases
from dydiff_kernels.gpu import MAX_BLOCK, AotCase
from dydiff_kernels.registry import collect

ARCHITECTURES = (80, 90)
STORAGE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STORAGE = tuple(STORAGE_BYTES)


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


def cases() -> list[AotCase]:
    """Every kernel of every registered op in the forms that training and sampling use."""
    return collect("aot_cases")


def _argument_type(name: str, case: AotCase, storage: str) -> str:
    """Triton's name of an argument's type, as a launch would give it."""
    if not name.endswith("_ptr"):
        return "fp32" if name in case.floats else "*i32" if name in case.scalars else "i32"
    if name in case.scalars:
        return "*i64" if name.endswith("_index_ptr") else "*fp64" if name == "gamma_bar_ptr" else "*fp32"
    return f"*{storage}" if name in case.reads or name in case.writes else "constexpr"


def compile_case(case: AotCase, storage: str, arch: int, **other_constants: Any) -> Any:
    """The compiled kernel, specialised as a launch with frames of a multiple of 16 elements specialises it.

    ``other_constants`` replace compile-time constants or fix sizes (a launch fixes those that are 1).
    """
    constants = {**case.constants, **other_constants}
    if "BLOCK" in case.kernel.arg_names:
        constants.setdefault("BLOCK", MAX_BLOCK)
    signature, attributes = {}, {}
    for position, name in enumerate(case.kernel.arg_names):
        signature[name] = "constexpr" if name in constants else _argument_type(name, case, storage)
        if signature[name] == "constexpr":
            constants.setdefault(name, None)
        elif name.endswith("_ptr") or name in case.divisible:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=attributes)
    warps = case.num_warps if isinstance(case.num_warps, int) else case.num_warps(STORAGE_BYTES[storage])
    options = dict(num_warps=warps, num_stages=case.num_stages)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


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


def resources(case: AotCase, storage: str, arch: int) -> Resources:
    """Compiles one case and measures it."""
    compiled = compile_case(case, storage, arch)
    registers, spilled = _register_usage(compiled.asm["cubin"])
    loads, stores = _count(compiled.asm["ptx"], "ld"), _count(compiled.asm["ptx"], "st")
    shared = compiled.metadata.shared
    return Resources(triton.__version__, case.name, storage, f"sm_{arch}", registers, spilled, shared, *loads, *stores)


def main() -> None:
    """Writes a row for every kernel, storage type and architecture to the file named, or to standard output."""
    kinds = itertools.product(cases(), STORAGE, ARCHITECTURES)
    rows = [asdict(resources(case, storage, arch)) for case, storage, arch in kinds]
    with open(sys.argv[1], "w", newline="") if len(sys.argv) > 1 else sys.stdout as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
