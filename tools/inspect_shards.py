"""Shows what a folder of shards holds: python tools/inspect_shards.py DIR [--pictures FILE] [--audit WORLD WORKERS]"""

import argparse
from pathlib import Path

from dydiff_dist.data.inspection import audit, describe, save_pictures
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.errors import run_command


def main() -> int:
    arguments = parse_arguments()
    shards = ShardSet.open(arguments.folder, check="sha256" if arguments.verify else "size")
    print("\n".join(describe(shards)))
    if arguments.verify:
        print(f"verified: the SHA-256 of all {len(shards.manifest.shards)} shards is the manifest's")
    if arguments.pictures:
        save_pictures(shards, Path(arguments.pictures), arguments.num_samples, seed=arguments.seed)
        print(f"pictures of {min(arguments.num_samples, len(shards))} random samples -> {arguments.pictures}")
    return run_audit(shards, *arguments.audit) if arguments.audit else 0


def run_audit(shards: ShardSet, world_size: int, num_workers: int) -> int:
    """Audits two epochs; the exit status is 1 if a sample is missing or comes twice."""
    if world_size < 1 or num_workers < 0:
        raise ValueError(f"--audit {world_size} {num_workers}: give at least 1 rank and at least 0 workers")
    status = 0
    for epoch in (0, 1):
        result = audit(shards, world_size, num_workers, epoch)
        verdict = "exact" if result.exact else "NOT EXACT"
        print(
            f"audit    epoch {epoch}, {world_size} ranks x {num_workers} workers: {result.seen_once} of "
            f"{result.num_samples} samples seen exactly once, {len(result.seen_more)} more than once, {result.missing} "
            f"never; {min(result.steps_per_rank)} to {max(result.steps_per_rank)} steps per rank: {verdict}"
        )
        status |= not result.exact
    return status


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
