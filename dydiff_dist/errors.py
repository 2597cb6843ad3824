"""How command lines tell a user what is wrong: one line, exit status 2, no traceback, no credential."""

import errno
import logging
import os
import select
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from dydiff_dist.extensions import import_extensions
from dydiff_dist.quoting import CredentialFilter, first_line, without_credentials
from dydiff_dist.strict_config import describe_error

USER_ERRORS = (ValueError, OSError, MemoryError)
"""Errors that `user_message` always has a line for: a ValueError's message is written for the user, and what the system
refuses is the user's to mend. Any other exception is a bug and keeps its traceback, unless memory has run out in it."""


class SharedError(ValueError):
    """A user error that every rank of a run has agreed on and raises alike, so that one of them reports it for all."""


SILENCE_SEC = 3.0
"""How long ranks that report an error, or leave that to another, wait before they exit."""

_NO_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "can't start new thread")
"""By which errors of torch and of the system, on CPUs and GPUs, say that there is no more."""
_ADVICE = {
    errno.ENOSPC: "make room there, or choose another place",
    errno.EDQUOT: "your quota there is used up: make room, or choose another place",
    errno.EFBIG: "files may not be that large: raise the limit (ulimit -f), or choose a file system that takes them",
    errno.EROFS: "it is mounted read-only: choose another place",
    errno.EACCES: "get the right to it (chmod, chown), or choose another place",
    errno.EPERM: "get the right to it (chmod, chown, chattr), or choose another place",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "it is a folder, where a file is wanted: choose another path",
    errno.ENOENT: "check the path",
    errno.EEXIST: "it is there already: choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "its symbolic links lead in a circle: mend them",
    errno.EMFILE: "this process may not open more files: raise the limit (ulimit -n), or use fewer workers",
    errno.ENFILE: "the machine has too many open files: end other processes, or raise fs.file-max",
    errno.ENOMEM: "end other processes, raise the limit on memory (ulimit -v, the container's), or ask for less",
    errno.EAGAIN: "end other processes, or raise the limit on processes (ulimit -u)",
    errno.EIO: "the disk, or the server behind it, fails: look at the system's log, and choose another place",
    errno.ESTALE: "the server behind it has changed: mount it again",
}
"""What to do, by what the system says."""
_TOLD = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""What libraries (gloo, safetensors, torch) pass on in errors of their own, in the system's words."""


def print_error(line: str) -> None:
    """Prints a line on standard error, at once."""
    print(line, file=sys.stderr, flush=True)


def run_command(main: Callable[[], int | None], report: Callable[[str], None] = print_error) -> None:
    """Runs a command line and exits: 0 or what ``main`` returns, 2 on a user error, 130 on Ctrl-C. Modules that
    ``--import`` names are imported first.

    Args:
        main: the command.
        report: prints the line about an error; `dydiff_dist.ranks.reports.report_once` where there may be several
            ranks.
    """
    if logging.lastResort is not None:  # where warnings go that no other handler takes
        logging.lastResort.addFilter(CredentialFilter())
    try:
        import_extensions()
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print_error("interrupted")
        status = 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            status = 128 + 13  # as SIGPIPE does, where the output goes through head
        else:
            message = user_message(error)
            if message is None:
                raise
            report(f"error: {without_credentials(message)}")
            status = 2
    sys.exit(status or 0)


def user_message(error: BaseException) -> str | None:
    """What to tell a user about an error: one line with the value or path, what is wrong, and what to change.

    Returns:
        None where the error is a bug.

    Examples:
        >>> user_message(OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "notes.txt/run"))
        'notes.txt/run: Not a directory; a part of the path is a file: choose another path'
        >>> user_message(KeyError("x")) is None
        True
    """
    if isinstance(error, ValidationError):
        return describe_error(error)
    if isinstance(error, OSError) and error.errno is not None:
        named = [str(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
        return ": ".join([*([" -> ".join(named)] if named else []), reason_and_advice(error)])
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_memory(error)):
        return (
            f"memory is used up: {first_line(error)}; {_ADVICE[errno.ENOMEM]}: a smaller batch, fewer workers, a "
            "smaller network"
        )
    if not isinstance(error, USER_ERRORS):
        told = next((code for code in _TOLD if os.strerror(code) in str(error)), None)
        return None if told is None else f"{first_line(error)}; {_ADVICE[told]}"
    return " ".join(str(error).split("\n")) or type(error).__name__


@contextmanager
def naming(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Errors of the system in the block, which name no file when a write fails, name ``path``; so do those that name
    ``partial``, under which it is being written, also where it is a copy of another file."""
    try:
        yield
    except OSError as error:
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        if error.errno is not None and (not named or (partial is not None and str(partial) in named)):
            error.filename, error.filename2 = str(path), None
        raise


def reason_and_advice(error: OSError) -> str:
    """What the system says and what to do, without the path: ``No space left on device; 0 MiB are free: make …``."""
    reason = error.strerror or first_line(error)
    advice = _ADVICE.get(error.errno or 0, "try again once that is mended")
    if error.errno == errno.ENOSPC and error.filename is not None:
        with suppress(OSError, StopIteration):
            folder = next(parent for parent in Path(error.filename).absolute().parents if parent.is_dir())
            advice = f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB are free: {advice}"
    return f"{reason}; {advice}"


def _is_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in _NO_MEMORY)


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more; if so, nothing more is written there."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = bool(poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone
