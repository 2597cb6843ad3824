"""Times the kernels against eager torch and torch.compile, after checking that they are right.

``python tools/bench_kernels.py`` with no arguments runs on any machine: every op at every size, on the GPU if there is
one, else on the CPU. It prints a table and writes CSV rows (with hardware, versions and commit) and a bar chart.
"Of copy" is the op's least traffic divided by its time, as a part of the bandwidth of ``copy_`` in the same run.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dydiff_dist.errors import run_command
from dydiff_dist.extensions import add_import_option
from dydiff_dist.study.records import append_run_rows
from dydiff_kernels.benchmark import cases, measure

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BUDGET_SEC = 3.0
"""An op at a size ends after this time of measurement, but not before 5 rounds."""
CHART_COLORS = {"eager": "#9aa5b1", "compile": "#5b8db8", "ours (new memory)": "#f2b36b", "ours": "#d9662b"}
Clock = Callable[[], float]
Calls = dict[str, Callable[[int], object]]
"""What is timed, by the variant's name; each takes the round's number, which chooses the inputs."""


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
    parser.add_argument("--op", action="append", help="only this op (may be repeated)")
    parser.add_argument("--size", choices=cases.SIZES, action="append", help="only this size (may be repeated)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="storage type (default: float32)")
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of up to 25, and no torch.compile")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all)")
    parser.add_argument(
        "--processor-time", action="store_true", help="time of the processor, not of the wall (busy machines, 1 thread)"
    )
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder for kernels.csv and kernels.png")
    add_import_option(parser)
    return parser.parse_args()


def chosen_cases(names: list[str] | None) -> list[cases.BenchmarkCase]:
    """The cases named, or all.

    Raises:
        ValueError: a name that no op has registered.
    """
    known = cases.all_cases()
    for name in names or ():
        if name not in known:
            raise ValueError(f"--op is {name!r}; expected one of {', '.join(known)}, or --import another")
    return [known[name] for name in names or known]


def measure_size(
    chosen: list[cases.BenchmarkCase], size: str, dtype: torch.dtype, device: torch.device, quick: bool, clock: Clock
) -> list[Row]:
    """Rows of every case and variant at one size; cases of one shape share their inputs."""
    rows = []
    for shape in dict.fromkeys(case.sizes[size] for case in chosen):
        alike = [case for case in chosen if case.sizes[size] == shape]
        for case in alike:
            cases.check(case, shape, dtype, device)
        num_sets = measure.num_sets(4 * torch.Size(shape).numel() * dtype.itemsize)
        inputs = [cases.make_inputs(shape, dtype, device, seed) for seed in range(num_sets)]
        for case in alike:
            calls = variants(case, inputs, case.parameters(shape, dtype, device), quick)
            rows += measure_case(case, size, calls, dtype, device, 5 if quick else 25, clock)
    return rows


def measure_case(
    case: cases.BenchmarkCase,
    size: str,
    calls: Calls,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    clock: Clock,
) -> list[Row]:
    """A row for each of the calls."""
    shape, name = case.sizes[size], str(dtype).removeprefix("torch.")
    timings = measure.time_in_turn(calls, device, rounds, BUDGET_SEC, clock)
    rows = []
    for variant, timing in timings.items():
        tensors = 2 if variant == "copy" else case.tensors_moved
        bytes_per_ms = tensors * torch.Size(shape).numel() * dtype.itemsize / timing.median
        of_copy = tensors / timing.median / (2 / timings["copy"].median)
        peak = measure.peak_bytes(calls[variant], device)
        median, low, high = (round(value, 3) for value in (timing.median, timing.low, timing.high))
        rates = round(bytes_per_ms / 1e6, 2), round(of_copy, 3), None if peak is None else round(peak / 1e6, 1)
        rows.append(Row(case.name, size, "x".join(map(str, shape)), name, variant, median, low, high, *rates))
    return rows


def variants(case: cases.BenchmarkCase, inputs: list[cases.Inputs], parameters: Any, quick: bool) -> Calls:
    """What to time."""

    def chosen(round_number: int) -> cases.Inputs:
        return inputs[round_number % len(inputs)]

    calls: Calls = {
        "copy": lambda n: chosen(n).out.copy_(chosen(n).x),
        "eager": lambda n: case.eager(chosen(n), parameters),
    }
    if not quick:
        compiled = torch.compile(case.eager, dynamic=False)
        calls["compile"] = lambda n: compiled(chosen(n), parameters)
    calls["ours (new memory)"] = lambda n: case.fresh(chosen(n), parameters, "auto")
    if (reusing := case.reusing) is not None:
        calls["ours"] = lambda n: reusing(chosen(n), parameters, "auto")
    return calls


def print_table(rows: list[Row], machine: dict[str, str]) -> None:
    print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    head = f"{'op':<21}{'size':<12}{'variant':<19}{'ms (p20–p80)':>24}"
    print(f"{head}{'GB/s':>8}{'of copy':>9}{'× eager':>9}{'peak MB':>9}")
    eager = {(row.op, row.size): row.ms_median for row in rows if row.variant == "eager"}
    for row in rows:
        times = f"{row.ms_median:.2f} ({row.ms_p20:.2f}–{row.ms_p80:.2f})"
        faster = eager[row.op, row.size] / row.ms_median
        peak = "–" if row.peak_mb is None else f"{row.peak_mb:.0f}"
        print(
            f"{row.op:<21}{row.size:<12}{row.variant:<19}{times:>24}{row.gb_per_s:>8.1f}{row.of_copy:>9.0%}"
            f"{faster:>9.1f}{peak:>9}"
        )


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
    chosen = chosen_cases(arguments.op)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    rows = []
    for size in arguments.size or list(cases.SIZES):
        names = ", ".join(case.name for case in chosen)
        print(f"{size}: checking, then timing {names}", file=sys.stderr, flush=True)
        rows += measure_size(chosen, size, DTYPES[arguments.dtype], device, arguments.quick, clock)
    machine = measure.machine(device)
    machine["device"] += ", processor time" if arguments.processor_time else ""
    # appended, so that one file keeps the history
    append_run_rows(arguments.output / "kernels.csv", [{**dataclasses.asdict(row), **machine} for row in rows])
    draw_chart(arguments.output / "kernels.png", rows, machine)
    if arguments.json:
        print(json.dumps({"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}, indent=2))
    else:
        print_table(rows, machine)
        if device.type == "cpu":
            print("not measured on a GPU")


if __name__ == "__main__":
    run_command(main)
