"""Fixtures shared by all parts."""

import os
import signal
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs with Ctrl-C ignored, and every process that the tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real sample inputs (sevir/, robonet/, bair/, timeseries/); tests skip where it is absent.

    The environment variable DYDIFF_SAMPLE_DATA names it; the default is shared/data beside the repository.
    """
    folder = Path(os.environ.get("DYDIFF_SAMPLE_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}; set DYDIFF_SAMPLE_DATA")
    return folder
