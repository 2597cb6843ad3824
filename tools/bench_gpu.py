"""Measures what a machine with a GPU reaches, in a few minutes: python tools/bench_gpu.py

First whether kernels and sampling are right there; then ceilings, kernels, training steps (the network alone, within
the trainer, compiled) and sampling. Each part is a process with a time limit of its own; one that fails is named, the
others go on. The rows are appended to a CSV file with machine, versions and commit. --device cpu shows that the parts
run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch

from dydiff_dist.benchmarks.gpu import parts
from dydiff_dist.errors import run_command
from dydiff_dist.study.records import append_run_rows
from dydiff_kernels.benchmark.measure import machine

CHECKS = ("tests/kernels/test_devices.py", "tests/diffusion/test_replay.py")
CHECKS_LIMIT_SEC = 240.0
ROOT = Path(__file__).parents[1]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default, help=f"default: {default}")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone; 'checks' is the first")
    parser.add_argument("--budget", type=float, default=600, metavar="SEC", help="for all parts together (600)")
    parser.add_argument("--csv", type=Path, default=Path("gpu_benchmarks.csv"), metavar="FILE")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what this program calls itself with
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, and torch sees no GPU here; use --device cpu to see that the parts run")
    named = parts(arguments.device)
    if unknown := {*(arguments.only or ()), *filter(None, [arguments.part])} - {"checks", *named}:
        raise ValueError(f"no part is called {sorted(unknown)[0]!r}; there are checks, {', '.join(named)}")
    if arguments.part:
        for reading in named[arguments.part][0](torch.device(arguments.device)):
            print(json.dumps(reading), flush=True)
        return
    limits = {"checks": CHECKS_LIMIT_SEC} | {name: limit for name, (_, limit) in named.items()}
    where = machine(torch.device(arguments.device))
    rows, deadline = [], time.monotonic() + arguments.budget
    for name in arguments.only or limits:
        found = run_part(name, arguments.device, min(limits[name], deadline - time.monotonic()))
        append_run_rows(arguments.csv, [{**each, **where} for each in found])  # whatever becomes of the parts to come
        rows += found
    print_table(rows)
    print(f"{len(rows)} rows more in {arguments.csv}")


def run_part(name: str, device: str, limit_sec: float) -> list[dict[str, str]]:
    """The rows of a part in a process of its own; one row that says so where it fails."""
    if limit_sec < 1:
        return [row(name, "not run", "", "the budget is spent; give more with --budget")]
    print(f"{name} (at most {limit_sec:.0f} s)", file=sys.stderr, flush=True)
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CHECKS]
    if find_spec("xdist"):  # most of their time is compiling
        tests += ["-n", "logical", "--maxprocesses", "8"]
    command = tests if name == "checks" else [sys.executable, __file__, "--device", device, "--part", name]
    failure, start = "", time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=limit_sec)
        if process.returncode:
            lines = (output if name == "checks" else errors).strip().splitlines()
            failure = lines[-1] if lines else f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        failure = f"not done after {limit_sec:.0f} s"
    finally:  # with what it has started, which would be timed along with the parts to come
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        output, errors = process.communicate()
    # DeepSpeed's lines begin with [ too
    readings = [json.loads(line) for line in output.splitlines() if line.startswith('["')]
    rows = [row(name, what, f"{value:.5g}", unit) for what, value, unit in readings]
    if name == "checks" and not failure:
        rows.append(row(name, output.strip().splitlines()[-1], "passed", ""))
    if failure:
        rows.append(row(name, "failed", "", failure))
    return [*rows, row(name, "taken", f"{time.monotonic() - start:.1f}", "s")]


def row(part: str, name: str, value: str, unit: str) -> dict[str, str]:
    return {"part": part, "name": name, "value": value, "unit": unit}


def print_table(rows: list[dict[str, str]]) -> None:
    for each in rows:
        print(f"{each['part']:<14}{each['name']:<52}{each['value']:>10} {each['unit']}")


if __name__ == "__main__":
    run_command(main)
