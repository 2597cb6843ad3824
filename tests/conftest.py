"""Fixtures shared by all parts."""

import os
import signal
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs with Ctrl-C ignored, and every process that the tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str | None:
    return None if torch.cuda.is_available() else "no CUDA device: the tests marked gpu are left out"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a CUDA device the tests that need one are left out rather than skipped one by one."""
    if torch.cuda.is_available():
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real sample inputs (sevir/, robonet/, bair/, timeseries/); tests skip where it is absent.

    The environment variable DYDIFF_SAMPLE_DATA names it; the default is shared/data beside the repository.
    """
    folder = Path(os.environ.get("DYDIFF_SAMPLE_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}; set DYDIFF_SAMPLE_DATA")
    return folder
