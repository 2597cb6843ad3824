"""Turns a source into shards: python tools/make_shards.py SOURCE --out DIR ...

Shards are tar files that plain webdataset reads, under DIR/train, DIR/valid and DIR/test, each with a manifest. A run
that was stopped goes on when the same command is given again; a finished one is recognised. --import MODULE
brings sources of your own (see dydiff_dist.data.source.register_source).
"""

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm

import dydiff_dist.data.sources  # noqa: F401 - registers them
from dydiff_dist.data.convert import DEFAULT_BAD_RATE, MIN_ITEMS_TO_JUDGE, convert, parse_part
from dydiff_dist.data.inputs import printable
from dydiff_dist.data.members import EncodingConfig
from dydiff_dist.data.options import add_options, read_options
from dydiff_dist.data.source import SOURCES, BadItem, ShardTask
from dydiff_dist.errors import run_command
from dydiff_dist.extensions import add_import_option
from dydiff_dist.ranks.launchers import read_launch
from dydiff_dist.ranks.reports import report_once


def main() -> None:
    arguments = parse_arguments()
    kind = SOURCES[arguments.source]
    source = kind.source(read_options(arguments, kind.config))
    plan = source.plan()
    estimate = sum(task.estimated_bytes for task in plan)
    print(f"{arguments.source}: {len(plan)} shards, about {estimate / 1e6:,.0f} MB, under {arguments.out}")
    for line in source.summary(plan):
        print(f"  {line}")
    launch = read_launch(os.environ)
    part = parse_part(arguments.part) if arguments.part else (launch.rank, launch.world_size)
    with ShardProgress(len(plan[part[0] :: part[1]])) as progress:
        report = convert(
            source,
            Path(arguments.out),
            arguments.processes,
            arguments.max_bad_rate,
            progress.on_shard,
            part,
            arguments.cluster,
            read_options(arguments, EncodingConfig),
            plan,
            progress.on_bad_item,
        )
    print("\n".join(report.describe()))


class ShardProgress:
    """A progress bar over shards, on a terminal alone, that counts samples and what was reused."""

    def __init__(self, num_shards: int):
        self.bar = tqdm(total=num_shards, unit="shard", dynamic_ncols=True, disable=None)
        self.num_samples = 0

    def on_shard(self, task: ShardTask, num_samples: int, reused: bool) -> None:
        self.num_samples += num_samples
        words = f"{self.num_samples} samples; {'found' if reused else 'wrote'} {task.name}"
        self.bar.set_postfix_str(words, refresh=False)
        self.bar.update()

    def on_bad_item(self, item: BadItem) -> None:
        self.bar.write(f"rejected {printable(item.name)}: {printable(item.reason)}", file=sys.stderr)

    def __enter__(self) -> "ShardProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_import_option(parser)
    commands = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    for name, kind in SOURCES.items():
        command = commands.add_parser(name, help=kind.summary, description=kind.summary)
        add_import_option(command)
        command.add_argument("--out", required=True, metavar="DIR", help="Folder for the shards; made if absent.")
        command.add_argument(
            "--processes",
            type=int,
            default=os.cpu_count() or 1,
            metavar="N",
            help="Shards written at the same time. Default: the number of cores.",
        )
        command.add_argument(
            "--part",
            metavar="I/N",
            help="Write only every N-th shard, from the I-th on (counted from 0): one of N jobs that share DIR. "
            "Default: processes that one launcher starts (srun, mpirun, torchrun) share the shards.",
        )
        command.add_argument(
            "--cluster",
            metavar="ADDRESS",
            help="Let the workers of a Dask cluster write the shards, by its scheduler's address (tcp://host:8786). "
            "They must share the disk of this machine. Needs dydiff_dist[cluster].",
        )
        command.add_argument(
            "--max-bad-rate",
            type=float,
            metavar="X",
            help="Stop when more than this share of the inputs, rounded up to whole ones, is bad. Default: "
            f"{DEFAULT_BAD_RATE}, of {MIN_ITEMS_TO_JUDGE} inputs or more.",
        )
        add_options(command.add_argument_group("how frames are stored"), EncodingConfig)
        add_options(command.add_argument_group("options of this source"), kind.config)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main, report_once)
