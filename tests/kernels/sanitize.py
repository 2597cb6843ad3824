"""Runs the kernel tests on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer.

``python tests/kernels/sanitize.py [pytest arguments]`` builds the package into a temporary folder, puts it before the
installed one and loads the sanitizers' run-time libraries first. Tensors come from malloc, so touching one byte
beyond a tensor ends the run. Needs GCC; takes about two minutes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OVERRUN = """
import torch
from dydiff_kernels import NoiseCounter, native
from dydiff_kernels.registry import Operands

name = NoiseCounter(0, torch.zeros(1, dtype=torch.int64), 0)
native.run("normal", Operands(torch.zeros(1, 1, 65), dict(out=torch.zeros(1, 1, 64)), dict(noise=name)))
"""
"""Writes one element beyond a tensor, which the sanitizer has to see."""
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"


def build(folder: Path) -> Path:
    """Builds the package with the sanitizers under ``folder`` and returns where to import it from."""
    environment = {**os.environ, "CFLAGS": FLAGS, "CXXFLAGS": FLAGS, "LDFLAGS": FLAGS}
    library = folder / "lib"
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    command += ["build", "--build-base", str(folder), "--build-lib", str(library)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    extensions = [path.read_bytes() for path in (library / "dydiff_kernels").glob("_cpu*.so")]
    if not extensions or b"__asan_init" not in extensions[0]:
        raise SystemExit("error: no instrumented extension was built; this needs GCC with libasan and libubsan")
    return library


def runtime_libraries() -> str:
    """Paths for LD_PRELOAD; the sanitizers must come before everything else, and the C++ library with them."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    command = ["gcc", "-print-file-name="]
    paths = [subprocess.check_output([command[0], command[1] + name], text=True).strip() for name in names]
    return " ".join(paths)


def check_that_it_sees(folder: str, environment: dict[str, str]) -> None:
    """Ends the program where an overrun goes unseen."""
    run = subprocess.run([sys.executable, "-c", OVERRUN], cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode == 0 or "heap-buffer-overflow" not in run.stderr:
        raise SystemExit(
            "error: the sanitizer did not see an element written beyond a tensor; its report means nothing"
        )


def main() -> None:
    """Builds, tests, and exits with pytest's status."""
    with tempfile.TemporaryDirectory(prefix="dydiff-sanitize-") as folder:
        library = build(Path(folder))
        environment = {
            **os.environ,
            "PYTHONPATH": str(library),
            "LD_PRELOAD": runtime_libraries(),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep memory until the process ends
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "tests/kernels"]
        command += ["-p", "no:cacheprovider", "--capture=sys"]  # a sanitizer writes to the process, not to Python
        probe = "import dydiff_kernels, sys; print('testing', dydiff_kernels.__file__)"
        subprocess.run([sys.executable, "-c", probe], cwd=folder, env=environment, check=True)
        check_that_it_sees(folder, environment)
        sys.exit(subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()
