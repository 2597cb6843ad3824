"""Runs command lines whose output goes where it can't, in one process, and reports how each ended.

Started by ``test_output_faults.py`` with a JSON list of (name, fault, place, command line); prints one line of JSON:
name -> [exit status, what it wrote to stderr, what is left in the place: file -> its bytes in base64].
"""

import base64
import contextlib
import gc
import io
import json
import os
import resource
import runpy
import subprocess
import sys
from pathlib import Path

LIMIT_BYTES = 12_000
"""Of a file, where a full disk can't be mounted."""


def make_place(fault: str, place: Path) -> None:
    """Makes ``place`` a folder in which nothing, or not enough, can be written, or a file."""
    if fault == "file in the path":
        place.write_text("a file")
        return
    place.mkdir()
    if fault == "no permission":
        place.chmod(0o555)
    elif fault == "read-only":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=True)
    elif fault == "full":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", place], check=True)


def run(fault: str, place: Path, command: list[str]) -> list:
    """Exit status, stderr and what is left."""
    make_place(fault, place)
    sys.argv, said, status = command, io.StringIO(), 0
    limit = LIMIT_BYTES if fault == "limited" else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        gc.collect()  # what a library prints of its own when it is cleared away belongs to it
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    left = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else []
    return [
        status,
        said.getvalue(),
        {str(p.relative_to(place)): base64.b64encode(p.read_bytes()).decode() for p in left},
    ]


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs = json.loads(sys.argv[1])
    print(json.dumps({name: run(fault, Path(place), command) for name, fault, place, command in jobs}))
