"""The command line that all training programs share: check, print the plan, train, say how it ended."""

import argparse
import logging
import os
import signal
import time

from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.errors import SILENCE_SEC, SharedError, run_command
from dydiff_dist.extensions import add_import_option
from dydiff_dist.quoting import CredentialFilter
from dydiff_dist.ranks.reports import report_once
from dydiff_dist.ranks.watchdog import EXIT_LOST, PeerLostError
from dydiff_dist.ranks.world import read_world
from dydiff_dist.training.config import load_config
from dydiff_dist.training.progress import outlive_readers
from dydiff_dist.training.run_plan import describe, make_plan
from dydiff_dist.training.task import Task
from dydiff_dist.training.trainer import Trainer


def run_training(task_type: type[Task], description: str) -> None:
    """Runs one training program to its exit status.

    Args:
        task_type: what is trained.
        description: the program's help.
    """
    run_command(lambda: _train(task_type, _parse(description)), report_once)


def _parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_import_option(parser)
    parser.add_argument("config", help="run configuration, a JSON file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the configuration")
    dry_run = (
        "check everything, print the resolved run, and stop; where the data are absent, data.expect stands for them"
    )
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed's launcher passes it
    return parser.parse_intermixed_args()  # options may stand between the overrides


def _train(task_type: type[Task], arguments: argparse.Namespace) -> int:
    """Checks, builds, trains; returns the exit status."""
    outlive_readers()
    world = read_world()
    logging.basicConfig(level=logging.INFO if world.is_main else logging.WARNING, format="%(message)s", force=True)
    for handler in logging.root.handlers:
        handler.addFilter(CredentialFilter())
    config = load_config(arguments.config, task_type.config_type, arguments.overrides)
    ENGINES[config.engine].prepare()
    task = task_type(make_plan(config, world, may_lack_data=arguments.dry_run))
    if world.is_main:
        print(describe(task), flush=True)
    if arguments.dry_run:
        return 0
    try:
        with Trainer(task) as trainer:
            received = trainer.train()
    except SharedError:
        if world.is_main:
            raise
        time.sleep(SILENCE_SEC)
        return 2
    except PeerLostError:
        os._exit(EXIT_LOST)  # the group of the ranks is broken, and taking it down may hang
    if received and world.is_main:
        print(f"stopped by {signal.Signals(received).name} after step {trainer.step}; the same command resumes")
    return 130 if received == signal.SIGINT else 0
