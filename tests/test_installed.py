"""The wheel in an environment of its own, away from the clone: console commands, kernels, the report's page."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("dydiff_dist", "kernels", "tools", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
SHARDS = "shards turbulence --out shards --train 2 --valid 0 --test 1 --resolution 32 --num-frames 5 --processes 2"


def run(*command, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Folder of the commands of an environment with the wheel; other packages are seen in this environment."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for part in PARTS:  # a copy, as building leaves files behind
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    for built in source.rglob("*.so"):
        built.unlink()
    run(sys.executable, *"-m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir .. .".split(), cwd=source)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", folder / "environment", cwd=folder)
    commands = folder / "environment" / "bin"
    run(commands / "pip", "install", "--quiet", "--no-deps", wheel, cwd=folder)
    paths = run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=folder)
    Path(paths.strip(), "others.pth").write_text(sysconfig.get_paths()["purelib"])
    shutil.rmtree(source)
    return commands


@pytest.mark.long
def test_the_wheel_brings_commands_kernels_and_pages(installed, tmp_path):
    script = (
        "import dydiff_dist, dydiff_kernels, importlib.resources as files; print(dydiff_dist.__file__); "
        "print(dydiff_kernels.available_backends('cpu')); "
        "print(sorted(f.name for f in files.files('dydiff_dist.evaluation').joinpath('report_page').iterdir()))"
    )
    where, backends, page = run(installed / "python", "-c", script, cwd=tmp_path).splitlines()
    assert str(installed.parent) in where and "cpp" in backends and "page.html" in page
    commands = run(installed / "dydiff", "--help", cwd=tmp_path)
    for name in ("demo", "shards", "train", "forecast", "evaluate", "encode", "plan", "doctor"):
        assert f"\n  {name} " in commands
        assert f"usage: dydiff {name} " in run(installed / "dydiff", name, "--help", cwd=tmp_path)
    run(installed / "dydiff", *SHARDS.split(), cwd=tmp_path)
    assert "samples  2 in 1 shards" in run(installed / "dydiff", "inspect", "shards/train", cwd=tmp_path)


@pytest.mark.long
def test_a_command_that_is_none_is_refused(installed, tmp_path):
    done = subprocess.run([installed / "dydiff", "forcast"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no command 'forcast'\nusage: dydiff COMMAND")


@pytest.mark.long
def test_the_wheel_forecasts_with_the_model_it_brings(installed, tmp_path):
    said = run(installed / "dydiff", "demo", "--out", "shipped", "--members", "2", cwd=tmp_path)
    assert "forecast: 8/8 cases" in said
    for name in ("report.html", "forecast_000000.png", "forecast_000000.gif"):
        assert (tmp_path / "shipped" / "scores" / name).stat().st_size > 10_000
        assert f"shipped/scores/{name}\n" in said
