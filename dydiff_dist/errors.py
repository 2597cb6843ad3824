"""How command lines tell a user what is wrong: one line, exit status 2, no traceback, no credential, and of foreign
text only a part."""

import logging
import re
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
    if logging.lastResort is not None:  # where warnings go that no other handler takes
        logging.lastResort.addFilter(CredentialFilter())
    try:
        import_extensions()
        status = main()
    except USER_ERRORS as error:
        if reports():
            print(f"error: {without_credentials(str(error))}", file=sys.stderr, flush=True)
        else:
            time.sleep(SILENCE_SEC)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status or 0)


def first_line(error: BaseException) -> str:
    """The first line of an error's message without credentials, at most ``MAX_QUOTED`` characters of it, or the error's
    type where it has no message."""
    text = str(error).strip()
    return shortened(text.splitlines()[0]) if text else type(error).__name__


MAX_QUOTED = 200
"""Characters of foreign text (of a file, a server, a library) that an error line repeats."""

_CREDENTIALS = (
    (re.compile(r"(\w://)[^/\s]*@"), r"\1***@"),
    # a password with a slash in it: what follows the colon is no port
    (re.compile(r"(\w://)[^/\s:@]*:(?!\d*(?:[/\s,;)'\"]|$))[^\s]*@"), r"\1***@"),
    (re.compile(r"(\w://[^\s?#'\"]*)([?#])[^\s'\"]+"), r"\1\2***"),
)
"""What may hold secrets in a URL: user and password before the host, a query (signatures), a fragment (tokens)."""


def without_credentials(text: str) -> str:
    """The text with ``***`` in place of user, password, query and fragment of every URL in it.

    Example:
        >>> without_credentials("s3://key:secret@host/shards and https://host/x?X-Amz-Signature=abc cannot be read")
        's3://***@host/shards and https://host/x?*** cannot be read'
    """
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text


def shortened(text: str, limit: int = MAX_QUOTED) -> str:
    """Foreign text as an error line may repeat it: one line, without credentials, ``limit`` characters at most, those
    left out in the last third.

    Example:
        >>> len(shortened("x" * 7000))
        200
    """
    text = " ".join(without_credentials(text).split())
    tail = limit // 3
    return text if len(text) <= limit else f"{text[: limit - tail - 3]} … {text[-tail:]}"


def quoted(value: object) -> str:
    """A foreign value as an error line may repeat it, in Python's notation: see ``shortened``."""
    return shortened(repr(value))


class CredentialFilter(logging.Filter):
    """Cuts credentials out of log records; to be added to a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record's text; keeps every record."""
        record.msg, record.args = without_credentials(record.getMessage()), None
        return True
