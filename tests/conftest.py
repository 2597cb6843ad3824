"""Fixtures shared by all parts."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path

# One thread a process, also of those that tests start: several run at once, and threads that wait for cores spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

pytest.register_assert_rewrite("checkpoint_files", "damage", "faulty_proxy", "kernel_cases", "launch_counter")
"""Modules of helpers whose failing asserts are to show their values, as those of tests do."""

REPOSITORY = Path(__file__).resolve().parent.parent
SCHEDULING = os.sched_getscheduler(0)

# A shell's background jobs ignore Ctrl-C, nohup's a closed terminal, and all that the tests start would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _usual_scheduling() -> Iterator[None]:
    """Whoever leaves the tests' process with another priority starves what runs beside it, or is starved."""
    yield
    found = os.sched_getscheduler(0)
    if found != SCHEDULING:
        os.sched_setscheduler(0, SCHEDULING, os.sched_param(0))
        pytest.fail(f"the test left scheduling policy {found} in place of {SCHEDULING}")


def pytest_report_header() -> str | None:
    return None if torch.cuda.is_available() else "no CUDA device: the tests marked gpu are left out"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are no part of a test's name: workers name tests alike, and a gzip holds the time of its making."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a CUDA device the tests that need one are left out rather than skipped one by one; several workers begin
    with what takes long, so that none is left with it at the end."""
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    num_workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if num_workers > 1:
        items[:] = slow_first(items, num_workers)


def slow_first(items: list[pytest.Item], num_workers: int) -> list[pytest.Item]:
    """The tests in an order whose equal parts, which the workers get (xdist's worksteal), each begin with their share
    of long tests, then of slow ones. Tests of one file stay together, for what they share is made once."""

    def rank(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return 0 if "long" in marks else 1 if marks & {"slow", "distributed"} else 2

    shares: list[list[pytest.Item]] = [[] for _ in range(num_workers)]
    files = groupby(sorted(items, key=rank), key=lambda item: (rank(item), item.path))
    for (kind, _), tests in files:
        if kind < 2:
            min(shares, key=len).extend(tests)
    fast: Iterator[pytest.Item] = (item for item in items if rank(item) == 2)
    for number, share in enumerate(shares):
        size = len(items) * (number + 1) // num_workers - len(items) * number // num_workers
        share.extend(islice(fast, max(0, size - len(share))))
    return [item for share in shares for item in share] + [*fast]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What became of the damages that tests recorded as ``damage`` (``record_property``): a row for each name with -v,
    and their sums."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    recorded = [
        value
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == "damage"
    ]
    if not recorded:
        return
    terminalreporter.section("damaged files")
    total = sum((Counter(outcomes) for _, outcomes in recorded), Counter())
    for name, outcomes in [*(sorted(recorded) if terminalreporter.verbosity > 0 else ()), ("all", total)]:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in Counter(outcomes).most_common())
        terminalreporter.write_line(f"{name}: {sum(outcomes.values())} damages, {counts}")


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real sample inputs (sevir/, robonet/, bair/, timeseries/); tests skip where it is absent.

    The environment variable DYDIFF_SAMPLE_DATA names it; the default is shared/data beside the repository.
    """
    folder = Path(os.environ.get("DYDIFF_SAMPLE_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}; set DYDIFF_SAMPLE_DATA")
    return folder
