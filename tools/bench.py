"""Times parts of the project beside their floors, in turn: python tools/bench.py data|latents|overhead ...

data      reading shards, against webdataset's plain pipeline and against reading the bytes alone, as cat does
latents   encoding shards, against the bare encoder with the same threads and batches
overhead  training steps of Dynamical Diffusion, against standard diffusion
Kernels have their own: tools/bench_kernels.py.
"""

import argparse
import os
from pathlib import Path

import torch

from dydiff_dist.autoencoders.encode import open_autoencoder, worker_threads
from dydiff_dist.benchmarks.encoding import BARE, JOB, compare_encoding
from dydiff_dist.benchmarks.streaming import compare_readers, memory_over_epochs
from dydiff_dist.benchmarks.training_step import DYDIFF, STANDARD, measure_overhead, peak_memory_mib, twins
from dydiff_dist.benchmarks.turns import ratios, spread
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.errors import run_command
from dydiff_dist.extensions import add_import_option
from dydiff_dist.ranks.world import read_world
from dydiff_dist.study.records import append_run_rows, write_run_rows
from dydiff_dist.study.runner import versions
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import load_config


def main() -> None:
    arguments = parse_arguments()
    arguments.bench(arguments)


def bench_data(arguments: argparse.Namespace) -> None:
    shards, rows = ShardSet.open(arguments.folder), []
    print(f"{shards.folder}: {len(shards)} samples; per second:")
    print(f"{'workers':>7}  {'reader':<15} {'samples':>8} {'20 %':>8} {'80 %':>8} {'MB':>8}  of webdataset")
    for workers in arguments.workers:
        for row in compare_readers(shards, workers, arguments.num_samples, arguments.repetitions):
            rows.append(row)
            rates = " ".join(f"{row[f'samples_per_sec_{kind}']:>8,.0f}" for kind in ("median", "p20", "p80"))
            print(f"{workers:>7}  {row['reader']:<15} {rates} {row['mb_per_sec']:>8,.0f}  {row['of_webdataset']:.2f}")
    for workers in arguments.workers if arguments.epochs else ():
        memory = memory_over_epochs(shards, arguments.epochs, workers)
        print(
            f"memory, {workers} workers: {memory[0]:,.0f} MB after epoch 1, {memory[len(memory) // 2]:,.0f} "
            f"MB half-way, {memory[-1]:,.0f} MB after epoch {len(memory)}"
        )
    if arguments.csv:
        write_run_rows(Path(arguments.csv), rows)
        print(f"rows -> {arguments.csv}")


def bench_latents(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    device, frames = read_world().device, arguments.batch_frames
    on_gpu = device.type == "cuda"
    precision, workers = "bf16" if on_gpu else "fp32", arguments.workers or worker_threads(device, 1)
    folder = Path(arguments.autoencoder)
    autoencoder = open_autoencoder(folder, device, precision, max_frames=frames, compiled=on_gpu)
    shards, scratch = ShardSet.open(arguments.shards), Path(arguments.scratch)
    by_clock, by_processor = compare_encoding(shards, autoencoder, workers, frames, arguments.rounds, scratch)
    job, bare = by_clock[JOB], by_clock[BARE]
    kept, of_processor = ratios(job, bare), ratios(by_processor[JOB], by_processor[BARE])
    print(f"{device}, {precision}, {workers} threads, {arguments.rounds} rounds in turn")
    print(f"the job {spread(job).median:,.1f} frames/s, the bare encoder {spread(bare).median:,.1f} frames/s")
    print(f"ratio {spread(kept).median:.3f} ({min(kept):.3f} to {max(kept):.3f}), ", end="")
    print(f"by processor time {spread(of_processor).median:.3f}")


def bench_overhead(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    config, world = load_config(arguments.config, RunConfig, arguments.overrides), read_world()
    seconds = measure_overhead(config, world, arguments.rounds)
    step_ms = {name: 1e3 * spread(each).median for name, each in seconds.items()}
    memory_mib = {name: peak_memory_mib(twin, world) for name, twin in twins(config).items()}
    for name in seconds:
        print(f"{name}: {step_ms[name]:.1f} ms a step, peak memory {memory_mib[name]:.1f} MiB")
    ratio = spread(ratios(seconds[DYDIFF], seconds[STANDARD]))
    percentiles = f"20th to 80th percentile {ratio.p20:.4f} to {ratio.p80:.4f}"
    print(f"time of {DYDIFF} over {STANDARD}: {ratio.median:.4f} ({percentiles})")
    if arguments.csv:
        row = {
            "config": Path(arguments.config).stem,
            "overrides": " ".join(arguments.overrides),
            "rounds": arguments.rounds,
            "ratio": f"{ratio.median:.4f}",
            "ratio_p20": f"{ratio.p20:.4f}",
            "ratio_p80": f"{ratio.p80:.4f}",
            **{f"{name}_ms": f"{step_ms[name]:.2f}" for name in seconds},
            **{f"{name}_mib": f"{memory_mib[name]:.1f}" for name in seconds},
            "load_1min": f"{os.getloadavg()[0]:.1f}",
            **versions(),
        }
        append_run_rows(Path(arguments.csv), [row])
        print(f"a row more in {arguments.csv}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_import_option(parser)
    what = parser.add_subparsers(required=True, metavar="data|latents|overhead")
    data = what.add_parser("data", help="reading shards")
    data.set_defaults(bench=bench_data)
    data.add_argument("folder", metavar="DIR", help="folder with manifest.json and the shards")
    data.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="processes (0 1 2)")
    data.add_argument("--num-samples", type=int, default=768, metavar="N", help="per repetition (768)")
    data.add_argument("--repetitions", type=int, default=7, metavar="N", help="of each reader (7)")
    data.add_argument("--epochs", type=int, default=0, metavar="N", help="also watch the memory over N epochs")
    data.add_argument("--csv", metavar="FILE", help="write the rows there, with machine, versions and commit")
    latents = what.add_parser("latents", help="encoding shards")
    latents.set_defaults(bench=bench_latents)
    latents.add_argument("autoencoder", metavar="AUTOENCODER", help="run or folder with autoencoder.json")
    latents.add_argument("--shards", required=True, metavar="SPLIT", help="one split's folder, shards/turbulence/test")
    latents.add_argument("--batch-frames", type=int, default=64, metavar="N", help="frames encoded at once (64)")
    latents.add_argument("--workers", type=int, metavar="N", help="threads (the machine's cores)")
    latents.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds that count (5)")
    latents.add_argument("--scratch", default=".", metavar="DIR", help="folder for the written latents (here)")
    overhead = what.add_parser("overhead", help="training steps with the dynamics and without")
    overhead.set_defaults(bench=bench_overhead)
    overhead.add_argument("config", help="run configuration of Dynamical Diffusion, a JSON file")
    overhead.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the configuration")
    overhead.add_argument("--rounds", type=int, default=30, metavar="N", help="steps of each (30)")
    overhead.add_argument("--threads", type=int, default=1, metavar="N", help="threads of CPU operations (1)")
    overhead.add_argument("--csv", metavar="FILE", help="append a row to this table")
    arguments, more = parser.parse_known_args()
    if more and (arguments.bench is not bench_overhead or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # overrides may also stand between options
        arguments.overrides += more
    return arguments


if __name__ == "__main__":
    run_command(main)
