"""Times the kernels against eager torch and torch.compile, after checking that they are right.

``python tools/bench_kernels.py`` with no arguments runs on any machine: every op at every size, on the GPU if there is
one, else on the CPU. It prints a table and writes CSV rows (with hardware, versions and commit) and a bar chart.
"Of copy" is the op's least traffic divided by its time, as a part of the bandwidth of ``copy_`` in the same run.
"""

import argparse
import csv
import dataclasses
import json
import os
import sys
from pathlib import Path

import torch

from dydiff_dist.errors import run_command
from dydiff_kernels import available_backends
from dydiff_kernels.benchmark import cases, measure

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BUDGET_SEC = 3.0
"""An op at a size ends after this time of measurement, but not before 5 rounds."""
CHART_COLORS = {"eager": "#9aa5b1", "compile": "#5b8db8", "ours (new memory)": "#f2b36b", "ours": "#d9662b"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: an op, a size, a variant."""

    op: str
    size: str
    shape: str
    dtype: str
    variant: str
    ms_median: float
    ms_p20: float
    ms_p80: float
    gb_per_s: float
    of_copy: float
    peak_mb: float | None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=cases.OPS, action="append", help="only this op (may be repeated)")
    parser.add_argument("--size", choices=cases.SIZES, action="append", help="only this size (may be repeated)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="storage type (default: float32)")
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of up to 25, and no torch.compile")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder for kernels.csv and kernels.png")
    return parser.parse_args()


def measure_size(ops: list[str], size: str, dtype: torch.dtype, device: torch.device, quick: bool) -> list[Row]:
    """Rows of every op and variant at one size; ops of one shape share their inputs."""
    backend = available_backends(device)[0]
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for op in ops:
        by_shape.setdefault(cases.OPS[op].sizes[size], []).append(op)
    rows = []
    for shape, alike in by_shape.items():
        for op in alike:
            cases.check(op, shape, dtype, device, backend)
        rows += measure_shape(alike, size, shape, dtype, device, backend, quick)
    return rows


def measure_shape(
    ops: list[str],
    size: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    backend: str,
    quick: bool,
) -> list[Row]:
    """Rows of ops that take tensors of this shape; the inputs are made once."""
    tensor_bytes = torch.Size(shape).numel() * dtype.itemsize
    num_sets = measure.num_sets(4 * tensor_bytes)
    inputs = [cases.make_inputs(shape, dtype, device, seed) for seed in range(num_sets)]
    levels = cases.make_levels(shape, dtype, device)
    rows = []
    for op in ops:
        calls = variants(op, inputs, levels, backend, quick)
        timings = measure.time_in_turn(calls, device, rounds=5 if quick else 25, budget_sec=BUDGET_SEC)
        copy_rate = 2 * tensor_bytes / timings["copy"].median
        for variant, timing in timings.items():
            moved = tensor_bytes * (2 if variant == "copy" else cases.OPS[op].tensors_moved)
            peak = measure.peak_bytes(calls[variant], device)
            rows.append(make_row(op, size, dtype, variant, timing, moved, copy_rate, peak))
    return rows


def make_row(
    op: str,
    size: str,
    dtype: torch.dtype,
    variant: str,
    timing: measure.Timing,
    moved: int,
    copy_rate: float,
    peak: int | None,
) -> Row:
    """A row from a timing (ms), the bytes moved at least, and the rate of the copy (bytes/ms)."""
    rate = moved / timing.median
    return Row(
        op=op,
        size=size,
        shape="x".join(map(str, cases.OPS[op].sizes[size])),
        dtype=str(dtype).removeprefix("torch."),
        variant=variant,
        ms_median=round(timing.median, 3),
        ms_p20=round(timing.low, 3),
        ms_p80=round(timing.high, 3),
        gb_per_s=round(rate / 1e6, 2),
        of_copy=round(rate / copy_rate, 3),
        peak_mb=None if peak is None else round(peak / 1e6, 1),
    )


def variants(op: str, inputs: list[cases.Inputs], levels: cases.Levels, backend: str, quick: bool) -> dict:
    """Calls to time, by name; each takes the round's number."""
    spec = cases.OPS[op]

    def chosen(round_number: int) -> cases.Inputs:
        return inputs[round_number % len(inputs)]

    calls = {
        "copy": lambda n: chosen(n).room.copy_(chosen(n).x),
        "eager": lambda n: spec.eager(chosen(n), levels),
    }
    if not quick:
        compiled = torch.compile(spec.eager, dynamic=False)
        calls["compile"] = lambda n: compiled(chosen(n), levels)
    calls["ours (new memory)"] = lambda n: spec.ours_fresh(chosen(n), levels, backend)
    if spec.ours is not spec.ours_fresh:
        calls["ours"] = lambda n: spec.ours(chosen(n), levels, backend)
    return calls


def print_table(rows: list[Row], machine: dict[str, str]) -> None:
    print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    head = ("op", "size", "variant", "ms (p20–p80)", "GB/s", "of copy", "× eager", "peak MB")
    print(f"{head[0]:<19}{head[1]:<12}{head[2]:<19}{head[3]:>24}{head[4]:>8}{head[5]:>9}{head[6]:>9}{head[7]:>9}")
    eager = {(row.op, row.size): row.ms_median for row in rows if row.variant == "eager"}
    for row in rows:
        times = f"{row.ms_median:.2f} ({row.ms_p20:.2f}–{row.ms_p80:.2f})"
        faster = eager[row.op, row.size] / row.ms_median
        peak = "–" if row.peak_mb is None else f"{row.peak_mb:.0f}"
        print(
            f"{row.op:<19}{row.size:<12}{row.variant:<19}{times:>24}{row.gb_per_s:>8.1f}{row.of_copy:>9.0%}"
            f"{faster:>9.1f}{peak:>9}"
        )


def write_csv(path: Path, rows: list[Row], machine: dict[str, str]) -> None:
    """Appends the rows, each with the machine's columns, so that one file keeps the history."""
    table = [{**dataclasses.asdict(row), **machine} for row in rows]
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys(), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(table)


def draw_chart(path: Path, rows: list[Row], machine: dict[str, str]) -> None:
    """Bars of time over the least possible time (copy bandwidth), one panel a size, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = list(dict.fromkeys(row.size for row in rows))
    ops = list(dict.fromkeys(row.op for row in rows))
    names = [name for name in CHART_COLORS if any(row.variant == name for row in rows)]
    figure, axes = plt.subplots(1, len(sizes), figsize=(3.6 * len(sizes) + 1, 3.8), sharey=True, squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        for offset, name in enumerate(names):
            found = {row.op: 1 / row.of_copy for row in rows if row.size == size and row.variant == name}
            positions = [ops.index(op) + (offset - len(names) / 2 + 0.5) * 0.8 / len(names) for op in found]
            axis.bar(positions, found.values(), 0.8 / len(names), label=name, color=CHART_COLORS[name])
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_xticks(range(len(ops)), ops, rotation=35, ha="right", fontsize=8)
        shapes = dict.fromkeys(row.shape for row in rows if row.size == size)
        axis.set_title(f"{size} ({', '.join(shapes)})", fontsize=9)
    axes[0, 0].set_ylabel("time / time at copy bandwidth")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right", ncols=len(names), fontsize=8)
    figure.suptitle(
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}", fontsize=9, x=0.01, ha="left"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads < 1:
        raise ValueError(f"--threads is {arguments.threads}; expected at least 1")
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ops, sizes = arguments.op or list(cases.OPS), arguments.size or list(cases.SIZES)
    rows = []
    for size in sizes:
        print(f"{size}: checking, then timing {', '.join(ops)}", file=sys.stderr, flush=True)
        rows += measure_size(ops, size, DTYPES[arguments.dtype], device, arguments.quick)
    machine = measure.machine(device)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.output / "kernels.csv", rows, machine)
    draw_chart(arguments.output / "kernels.png", rows, machine)
    if arguments.json:
        print(json.dumps({"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}, indent=2))
    else:
        print_table(rows, machine)
        if device.type == "cpu":
            print("not measured on a GPU")


if __name__ == "__main__":
    run_command(main)
