"""Which processes a rank counts on: all up to the one that started its run."""

import os
import subprocess
import sys

import pytest

from dydiff_dist.ranks.parents import STARTER

LINKS = "import os; from dydiff_dist.ranks.parents import launcher_processes as f; print(os.getpid(), f('none'))"


def run_below(starter: int | None, *, between: bool) -> tuple[int, dict[int, int]]:
    """(number, links) of a process that this one starts, directly or through one in between."""
    environment = os.environ if starter is None else os.environ | {STARTER: str(starter)}
    program = [sys.executable, "-c", LINKS]
    if between:
        program = [sys.executable, "-c", f"import subprocess; subprocess.run({program})"]
    output = subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout
    process, links = output.split(maxsplit=1)
    return int(process), eval(links, {})


def test_a_run_that_nobody_waits_for_counts_on_nobody():
    assert run_below(None, between=False)[1] == {}


@pytest.mark.parametrize("between", [False, True])
def test_a_run_counts_on_all_up_to_the_one_that_waits(between):
    process, links = run_below(os.getpid(), between=between)
    assert next(iter(links)) == process and list(links.values())[-1] == os.getpid() and len(links) == 1 + between
    assert list(links)[1:] == list(links.values())[:-1]


def test_a_run_whose_starter_is_gone_already_has_not_its_parent():
    gone = subprocess.Popen(["true"])
    gone.wait()
    process, links = run_below(gone.pid, between=False)
    assert links == {process: gone.pid}
