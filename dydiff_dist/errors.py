"""How command lines tell a user what is wrong: one line, exit status 2, no traceback."""

import sys
import time
from collections.abc import Callable

from dydiff_dist.extensions import import_extensions

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Errors whose message is written for the user. Any other exception is a bug and keeps its traceback."""


class SharedError(ValueError):
    """A user error that every rank of a run has agreed on and raises alike, so that one of them reports it for all."""


SILENCE_SEC = 3.0
"""How long ranks that leave the report to another wait before they exit."""


def run_command(main: Callable[[], int | None], reports: Callable[[], bool] = lambda: True) -> None:
    """Runs a command line and exits: 0 or what ``main`` returns, 2 on a user error, 130 on Ctrl-C. Modules that
    ``--import`` names are imported first.

    Args:
        main: the command.
        reports: whether this process is the one to print an error. Of several ranks that fail alike one does; the
            others wait a moment, because launchers end all ranks as soon as one has exited.
    """
    try:
        import_extensions()
        status = main()
    except USER_ERRORS as error:
        if reports():
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(SILENCE_SEC)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status or 0)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
