"""Modules of other packages that register something before a command line is parsed: ``--import MODULE``."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

_OPTION = "--import"


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--import MODULE``, which may be given several times, for the help and the parser's own checks."""
    parser.add_argument(
        _OPTION,
        action="append",
        metavar="MODULE",
        default=argparse.SUPPRESS,
        help="Import this Python module first, from the working folder or wherever Python finds modules, so that what "
        "it registers is known.",
    )


def import_extensions(arguments: Sequence[str] | None = None) -> None:
    """Imports the modules that ``--import`` names; to be called before the parser is built.

    Where there are any, the working folder is added to the places where Python looks, last. Processes that are started
    later import the modules by themselves, as they are given the same places.

    Args:
        arguments: the command line; None takes this process's.

    Raises:
        ValueError: a module can't be imported, whatever it raised.

    Examples:
        >>> import_extensions(["--import", "json", "turbulence", "--out", "shards"])
        >>> import_extensions(["--import", "no_such_module"])
        Traceback (most recent call last):
            ...
        ValueError: --import no_such_module: ModuleNotFoundError: No module named 'no_such_module'
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_import_option(parser)
    try:
        given, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    names = getattr(given, "import", [])
    if names and os.getcwd() not in sys.path:  # not unasked: a file that lies there could pass for an optional package
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = "" if isinstance(error, ModuleNotFoundError) else f" ({place.filename}, line {place.lineno})"
            reason = str(error).splitlines()[0] if str(error) else "no message"
            raise ValueError(f"{_OPTION} {name}: {type(error).__name__}: {reason}{where}") from None
