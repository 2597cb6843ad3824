"""Refuses a second training of a run at once. Imports nothing slow; to be called before anything slow is imported."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dydiff_dist.checkpoints.run_lock import check_free
from dydiff_dist.ranks.launchers import read_launch


def refuse_second_start(arguments: Sequence[str] | None = None) -> None:
    """Exits with status 2 and one line where the run that a command line names is being trained already, be it by
    ranks that have lost their launcher. Rank 0 looks; whatever else may be wrong with the command line comes up later.

    Args:
        arguments: the command line without the program; None takes this process's.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        looks = "--dry-run" not in words and read_launch(os.environ).rank == 0
        folder = _output_dir(words) if looks else None
    except (OSError, ValueError, RecursionError):
        return
    if folder is None:
        return
    try:
        check_free(Path(folder))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def _output_dir(words: list[str]) -> str | None:
    """``output_dir`` of a training's command line: of an override, or of the configuration; None if there is none."""
    overrides = [word.partition("=")[2] for word in words if word.startswith("output_dir=")]
    if overrides:
        return overrides[-1].strip('"')
    file = next((Path(word) for word in words if "=" not in word and Path(word).is_file()), None)
    tree = json.loads(file.read_text()) if file else None
    folder = tree.get("output_dir") if isinstance(tree, dict) else None
    return folder if isinstance(folder, str) else None
