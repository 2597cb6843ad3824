"""Shows what a folder of shards holds: python tools/inspect_shards.py DIR [--pictures FILE] [--audit WORLD WORKERS]"""

import argparse
from pathlib import Path

from dydiff_dist.data.inspection import audit, describe, save_pictures
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.errors import run_command


def main() -> int:
    arguments = parse_arguments()
    if arguments.num_samples < 1:
        raise ValueError(f"--num-samples is {arguments.num_samples}; draw at least 1")
    shards = ShardSet.open(arguments.folder, check="sha256" if arguments.verify else "size")
    print("\n".join(describe(shards)))
    if arguments.verify:
        print(f"verified: the SHA-256 of all {len(shards.manifest.shards)} shards is the manifest's")
    if arguments.pictures:
        save_pictures(shards, Path(arguments.pictures), arguments.num_samples, seed=arguments.seed)
        print(f"pictures of {min(arguments.num_samples, len(shards))} random samples -> {arguments.pictures}")
    if not arguments.audit:
        return 0
    world_size, num_workers = arguments.audit
    results = [audit(shards, world_size, num_workers, epoch) for epoch in (0, 1)]
    for epoch, result in enumerate(results):
        print(f"audit    epoch {epoch}, {world_size} ranks x {num_workers} workers: {result}")
    return 0 if all(result.exact for result in results) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="Folder with manifest.json and the shards.")
    parser.add_argument("--pictures", metavar="FILE", help="Save frames of random samples as a picture.")
    parser.add_argument("--num-samples", type=int, default=4, metavar="N", help="Samples to draw. Default: 4.")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Chooses the samples to draw. Default: 0.")
    parser.add_argument("--verify", action="store_true", help="Compare every shard with its SHA-256 (reads all).")
    parser.add_argument(
        "--audit",
        nargs=2,
        type=int,
        metavar=("WORLD", "WORKERS"),
        help="Read two epochs as WORLD ranks with WORKERS workers each would, and prove that each sample comes once.",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
