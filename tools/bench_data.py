"""Times the reading of shards: python tools/bench_data.py DIR [--workers 0 1 2] [--epochs 20] [--csv FILE]

This project's stream against webdataset's plain pipeline over the same tars, and against reading their bytes alone, as
cat does. The readers take turns; "of webdataset" is the median ratio within a turn.
"""

import argparse
import csv
from pathlib import Path

from dydiff_dist.benchmarks.streaming import compare, csv_rows, memory_over_epochs
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.errors import run_command


def main() -> None:
    arguments = parse_arguments()
    shards = ShardSet.open(arguments.folder)
    if shards.schema.encoding != "npy":
        raise ValueError(f"{shards.folder} holds {shards.schema.encoding}; the comparison reads npy shards")
    rows = []
    print(f"{shards.folder}: {len(shards)} samples; per second:")
    print(f"{'workers':>7}  {'reader':<15} {'samples':>8} {'20 %':>8} {'80 %':>8} {'MB':>8}  of webdataset")
    for num_workers in arguments.workers:
        results = compare(shards, num_workers, arguments.num_samples, arguments.repetitions)
        for row in csv_rows(shards, results):
            rows.append(row)
            rates = " ".join(f"{row[f'samples_per_sec_{kind}']:>8,.0f}" for kind in ("median", "p20", "p80"))
            print(
                f"{num_workers:>7}  {row['reader']:<15} {rates} {row['mb_per_sec']:>8,.0f}  {row['of_webdataset']:.2f}"
            )
    if arguments.epochs:
        for num_workers in arguments.workers:
            memory = memory_over_epochs(shards, arguments.epochs, num_workers)
            print(
                f"memory, {num_workers} workers: {memory[0]:,.0f} MB after epoch 1, {memory[len(memory) // 2]:,.0f} "
                f"MB half-way, {memory[-1]:,.0f} MB after epoch {len(memory)}"
            )
    if arguments.csv:
        write_csv(Path(arguments.csv), rows)


def write_csv(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"rows -> {path}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="Folder with manifest.json and the shards.")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="Default: 0 1 2.")
    parser.add_argument("--num-samples", type=int, default=768, metavar="N", help="Per repetition. Default: 768.")
    parser.add_argument("--repetitions", type=int, default=7, metavar="N", help="Default: 7.")
    parser.add_argument("--epochs", type=int, default=0, metavar="N", help="Also watch the memory over N epochs.")
    parser.add_argument("--csv", metavar="FILE", help="Write the rows there, with machine, versions and commit.")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
