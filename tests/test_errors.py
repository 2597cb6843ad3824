"""What a command line says when something fails: a line for what a user did, a traceback for a bug."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_commands import environment, run

from dydiff_dist import errors
from dydiff_dist.errors import naming, user_message
from dydiff_dist.files import write_text

LIMITED = """
import resource, sys
from dydiff_dist.errors import run_command
resource.setrlimit(resource.{limit}, ({value}, {value}))
def main():
    {body}
run_command(main)
"""


def command(body: str, limit: str = "RLIMIT_CORE", value: int = 0) -> subprocess.CompletedProcess:
    """A command line whose main is ``body``."""
    return run([sys.executable, "-c", LIMITED.format(body=body, limit=limit, value=value)])


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "MiB are free: make room there"),
        (errno.EDQUOT, "your quota there is used up"),
        (errno.EROFS, "it is mounted read-only: choose another place"),
        (errno.EACCES, "get the right to it"),
        (errno.ENOTDIR, "a part of the path is a file"),
        (errno.EFBIG, "raise the limit (ulimit -f)"),
        (errno.EMFILE, "raise the limit (ulimit -n)"),
        (errno.EIO, "look at the system's log"),
        (errno.ECONNRESET, "try again"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_path_reason_and_advice(tmp_path, code, advice):
    path = tmp_path / "x.bin"
    message = user_message(OSError(code, os.strerror(code), str(path)))
    assert message.startswith(f"{path}: {os.strerror(code)}; ") and advice in message and "\n" not in message
    assert "Errno" not in message
    assert advice in user_message(OSError(code, os.strerror(code))) or code == errno.ENOSPC


def test_what_libraries_pass_on_of_the_system_is_a_line():
    error = RuntimeError("[enforce fail at gloo/transport/tcp/device.cc:186] rv != -1. Too many open files")
    assert user_message(error).endswith("Too many open files; " + errors._ADVICE[errno.EMFILE])
    assert user_message(RuntimeError("shapes don't match")) is None


def test_every_advice_is_for_an_error_of_the_system():
    for code in errors._ADVICE:
        message = user_message(OSError(code, os.strerror(code), "x"))
        assert message.startswith(f"x: {os.strerror(code)}; "), message


def test_a_write_that_fails_names_its_file_not_the_partial_one(tmp_path):
    with pytest.raises(OSError) as caught, naming(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert user_message(caught.value).startswith(f"{tmp_path / 'x'}: No space left on device; ")
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path / "x"):
        (tmp_path / "read meanwhile").read_bytes()
    assert user_message(caught.value).startswith(f"{tmp_path / 'read meanwhile'}: No such file")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "file" / "x.json", "{}")
    assert user_message(caught.value).startswith(f"{tmp_path / 'file' / 'x.json'}: Not a directory; a part of the")


def test_a_command_line_ends_in_a_line(tmp_path):
    path = tmp_path / "big.txt"
    for body, limit, value, message in (
        (
            f"open({str(tmp_path / 'absent' / 'x')!r}, 'w')",
            "RLIMIT_CORE",
            0,
            "absent/x: No such file or directory; check",
        ),
        (
            f"from pathlib import Path; from dydiff_dist.files import write_text; "
            f"write_text(Path({str(path)!r}), 'x' * 9000)",
            *("RLIMIT_FSIZE", 4096, f"{path}: File too large; files may not be that large"),
        ),
        ("files = [open('/dev/null') for _ in range(99)]", "RLIMIT_NOFILE", 40, "/dev/null: Too many open files; "),
        ("bytearray(2**34)", "RLIMIT_AS", 2**33, "memory is used up"),
        ("import torch; torch.empty(2**34, dtype=torch.uint8)", "RLIMIT_AS", 2**33, "memory is used up"),
        ("from pydantic import TypeAdapter as T; T(int).validate_python('many')", "RLIMIT_CORE", 0, "is 'many': input"),
        ("raise ValueError('first' + chr(10) + 'second')", "RLIMIT_CORE", 0, "first second"),
    ):
        done = command(body, limit, value)
        assert done.returncode == 2, (body, done.stderr)
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ") and message in line, line
    assert [entry.name for entry in tmp_path.iterdir()] == []


def test_a_bug_keeps_its_traceback():
    done = command("{}['x']")
    assert done.returncode == 1 and "Traceback" in done.stderr and "KeyError" in done.stderr


def test_output_that_nobody_reads_any_more_ends_in_silence():
    program = LIMITED.format(body="[print('x' * 100) for _ in range(10000)]", limit="RLIMIT_CORE", value=0)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 141
