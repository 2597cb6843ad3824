"""How command lines tell a user what is wrong: one line, exit status 2, no traceback."""

import sys
import time
from collections.abc import Callable

from dydiff_dist.extensions import import_extensions

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, PermissionError)
"""Errors whose message is written for the user. Any other exception is a bug and keeps its traceback."""


class SharedError(ValueError):
    """A user error that every rank of a run has agreed on and raises alike, so that one of them speaks for all."""


SILENCE_SEC = 3.0
"""How long ranks that leave the talking to another wait before they exit."""


def run_command(main: Callable[[], int | None], speaks: Callable[[], bool] = lambda: True) -> None:
    """Runs a command line and exits: 0 or what ``main`` returns, 2 on a user error, 130 on Ctrl-C. Modules that
    ``--import`` names are imported first.

    Args:
        main: the command.
        speaks: whether this process is the one to print an error. Of several ranks that fail alike one speaks; the
            others wait a moment, because launchers end all ranks as soon as one has exited.
    """
    try:
        import_extensions()
        status = main()
    except USER_ERRORS as error:
        if speaks():
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(SILENCE_SEC)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status or 0)
