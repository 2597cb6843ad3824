"""Times the reading of shards: python tools/bench_data.py DIR [--workers 0 1 2] [--epochs 20]"""

import argparse

from dydiff_dist.data.benchmark import compare, machine, memory_over_epochs
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.errors import run_command


def main() -> None:
    arguments = parse_arguments()
    shards = ShardSet.open(arguments.folder)
    sample_bytes = sum(entry.bytes for entry in shards.manifest.shards) / len(shards)
    print(f"{shards.folder}: {len(shards)} samples of {sample_bytes / 1e3:.0f} kB; {machine()}")
    print(f"{'workers':>7}  {'reader':<12} {'samples/s':>10} {'20 %':>8} {'80 %':>8} {'MB/s':>8}  of webdataset")
    for num_workers in arguments.workers:
        results = compare(shards, num_workers, arguments.num_samples, arguments.repetitions)
        for result in results:
            rates = f"{result.median:>10,.0f} {result.low:>8,.0f} {result.high:>8,.0f}"
            relative = f"{result.median * sample_bytes / 1e6:>8,.0f}  {result.median / results[0].median:.2f}"
            print(f"{num_workers:>7}  {result.reader:<12} {rates} {relative}")
    if arguments.epochs:
        memory = memory_over_epochs(shards, arguments.epochs)
        print(
            f"memory   {memory[0]:,.0f} MB after epoch 1, {memory[len(memory) // 2]:,.0f} MB half-way, "
            f"{memory[-1]:,.0f} MB after epoch {len(memory)}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="Folder with manifest.json and the shards.")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="Default: 0 1 2.")
    parser.add_argument("--num-samples", type=int, default=768, metavar="N", help="Per repetition. Default: 768.")
    parser.add_argument("--repetitions", type=int, default=7, metavar="N", help="Default: 7.")
    parser.add_argument("--epochs", type=int, default=0, metavar="N", help="Also watch the memory over N epochs.")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
