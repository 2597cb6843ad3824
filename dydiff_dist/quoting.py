"""Foreign text in lines for the user: no credential, no whole document."""

import logging
import re

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

    Examples:
        >>> without_credentials("s3://key:secret@host/shards and https://host/x?X-Amz-Signature=abc cannot be read")
        's3://***@host/shards and https://host/x?*** cannot be read'
    """
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text


def shortened(text: str, limit: int = MAX_QUOTED) -> str:
    """Foreign text as an error line may repeat it: one line, without credentials, ``limit`` characters at most, those
    left out in the last third.

    Examples:
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


def first_line(error: BaseException) -> str:
    """The first line of an error's message without credentials, at most ``MAX_QUOTED`` characters of it, or the error's
    type where it has no message."""
    text = str(error).strip()
    return shortened(text.splitlines()[0]) if text else type(error).__name__
