"""Ranks that meet the same mistake say it once; ranks that meet different ones all speak."""

import os
import secrets
import subprocess
import sys

from run_commands import ROOT, environment

PROGRAM = """
import os, sys, time
from dydiff_dist.errors import run_command
from dydiff_dist.ranks.reports import report_once
def main():
    time.sleep(0.5 * int(os.environ.get("RANK", 0)))
    raise ValueError(sys.argv[1].replace("RANK", os.environ.get("RANK", "none")))
run_command(main, report_once)
"""


def say(message: str, ranks: range | None, port: int | str) -> tuple[str, list[int]]:
    """What processes write that fail with ``message`` at about the same time, and their exit statuses."""
    processes = []
    for rank in ranks or range(2):
        variables = {} if ranks is None else {"RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "localhost"}
        variables |= {} if ranks is None else {"MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "LOCAL_SIZE": "3"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, message],
                cwd=ROOT,
                env={**environment(), **variables},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    output = "".join(process.communicate(timeout=60)[1] for process in processes)
    return output, [process.returncode for process in processes]


def port() -> int:
    return 20_000 + secrets.randbelow(10_000)


def test_ranks_that_fail_alike_print_one_line():
    assert say("shards are absent", range(3), port()) == ("error: shards are absent\n", [2, 2, 2])


def test_each_different_mistake_is_printed():
    output, _ = say("rank RANK has no disk", range(3), port())
    assert output == "".join(f"error: rank {rank} has no disk\n" for rank in range(3))


def test_a_mistake_of_one_rank_alone_is_printed_whichever_it_is():
    assert say("shards are absent", range(2, 3), port())[0] == "error: shards are absent\n"


def test_processes_of_no_launcher_each_say_their_own():
    assert say("shards are absent", None, 0) == (2 * "error: shards are absent\n", [2, 2])


def test_variables_that_are_no_number_are_one_line_too():
    output, statuses = say("never comes to it", range(3), "many")
    assert statuses == [2, 2, 2] and os.linesep not in output[:-1]
