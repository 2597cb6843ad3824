"""Step time and memory of Dynamical Diffusion over standard diffusion: python tools/bench_overhead.py CONFIG ...

Both are trained in turn, step by step, in this one process; the ratio is the median over the pairs of steps.
"""

import argparse
import os
from pathlib import Path

import torch

from dydiff_dist.benchmarks.overhead import DYDIFF, STANDARD, measure_overhead
from dydiff_dist.errors import run_command
from dydiff_dist.ranks.world import read_world
from dydiff_dist.study.records import read_run_rows, write_run_rows
from dydiff_dist.study.runner import versions
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import load_config


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config, RunConfig, arguments.overrides)
    overhead = measure_overhead(config, read_world(), arguments.rounds)
    low, high = overhead.ratio_20_80
    for name in (STANDARD, DYDIFF):
        print(f"{name}: {overhead.step_ms[name]:.1f} ms a step, peak memory {overhead.memory_mib[name]:.1f} MiB")
    print(f"time of {DYDIFF} over {STANDARD}: {overhead.ratio:.4f} (20th to 80th percentile {low:.4f} to {high:.4f})")
    if arguments.csv:
        row = {
            "config": Path(arguments.config).stem,
            "overrides": " ".join(arguments.overrides),
            "rounds": arguments.rounds,
            "ratio": f"{overhead.ratio:.4f}",
            "ratio_p20": f"{low:.4f}",
            "ratio_p80": f"{high:.4f}",
            **{f"{name}_ms": f"{overhead.step_ms[name]:.2f}" for name in (STANDARD, DYDIFF)},
            **{f"{name}_mib": f"{overhead.memory_mib[name]:.1f}" for name in (STANDARD, DYDIFF)},
            "load_1min": f"{os.getloadavg()[0]:.1f}",
            **versions(),
        }
        path = Path(arguments.csv)
        write_run_rows(path, [*(read_run_rows(path) if path.is_file() else []), row])
        print(f"a row more in {path}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="run configuration of Dynamical Diffusion, a JSON file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the configuration")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="steps of each (30)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of CPU operations (1)")
    parser.add_argument("--csv", metavar="FILE", help="append a row to this table")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_command(main)
