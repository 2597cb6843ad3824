"""Modules that ``--import`` names: found in the working folder, which is looked into for nothing else."""

import subprocess
import sys

PROGRAM = """
import sys
sys.path.remove("")  # python -c puts it there, a command does not
from dydiff_dist.extensions import import_extensions
import_extensions(sys.argv[1:])
print(int("my_names" in sys.modules))
try:
    import optional_package
except ImportError:
    print("not found")
"""


def test_the_working_folder_is_looked_into_only_where_a_module_is_named(tmp_path):
    (tmp_path / "my_names.py").write_text("")
    (tmp_path / "optional_package.py").write_text("raise SystemExit('a file in the folder passed for a package')")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert run("data", "--out", "there").stdout.split("\n")[:2] == ["0", "not found"]
    assert run("data", "--import", "my_names").stdout.startswith("1\n")
