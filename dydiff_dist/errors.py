"""How command lines tell a user what is wrong: one line, exit status 2, no traceback."""

import sys
from collections.abc import Callable

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, PermissionError)
"""Errors whose message is written for the user. Any other exception is a bug and keeps its traceback."""


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command line's ``main`` and exits: 0 or its return value, 2 on a user error, 130 on Ctrl-C."""
    try:
        status = main()
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status or 0)
