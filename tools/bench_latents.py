"""Times the encoding of shards against the bare encoder: python tools/bench_latents.py AUTOENCODER --shards SPLIT ...

SPLIT is one split's folder, e.g. shards/turbulence/test. Both are timed in turn with the same threads and batches.
"""

import argparse
from pathlib import Path

import torch

from dydiff_dist.autoencoders.encode import open_autoencoder, worker_threads
from dydiff_dist.benchmarks.encoding import compare
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.errors import run_command
from dydiff_dist.ranks.world import read_world


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    device = read_world().device
    precision = "bf16" if device.type == "cuda" else "fp32"
    autoencoder = open_autoencoder(
        Path(arguments.autoencoder),
        device,
        precision,
        max_frames=arguments.batch_frames,
        compiled=device.type == "cuda",
    )
    workers = arguments.workers or worker_threads(device, 1)
    result = compare(
        ShardSet.open(arguments.shards),
        autoencoder,
        workers,
        arguments.batch_frames,
        arguments.rounds,
        Path(arguments.scratch),
    )
    print(f"{device}, {precision}, {workers} threads, {arguments.rounds} rounds in turn")
    print(f"the job {result.job:,.1f} frames/s, the bare encoder {result.bare:,.1f} frames/s")
    print(f"ratio {result.ratio:.3f} ({result.low:.3f} to {result.high:.3f}), by processor time {result.cpu_ratio:.3f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("autoencoder", metavar="AUTOENCODER", help="run or folder with autoencoder.json")
    parser.add_argument("--shards", required=True, metavar="SPLIT", help="folder of one split's shards")
    parser.add_argument("--batch-frames", type=int, default=64, metavar="N", help="frames encoded at once (64)")
    parser.add_argument("--workers", type=int, metavar="N", help="threads (the machine's cores)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds that count (5)")
    parser.add_argument("--scratch", default=".", metavar="DIR", help="folder for the written latents (here)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
