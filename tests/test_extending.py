"""docs/extending.md runs as it stands: one module with its code, one configuration, four commands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "my_waves.py").write_text("\n".join(blocks("python")))
    (tmp_path / "waves.json").write_text(blocks("json")[0])
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    words = [str(ROOT / word) if word.startswith(("tools/", "dydiff_dist/")) else word for word in command.split()]
    words[0] = sys.executable
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_the_page_makes_shards_trains_forecasts_and_scores(folder):
    commands = blocks("sh")[0].strip().splitlines()
    assert len(commands) == 4
    for command in commands:
        done = run(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    scores = json.loads((folder / "runs/waves/scores/scores.json").read_text())
    assert set(scores["scores"]) == {"forecast", "persistence", "trend"}
    without = run(commands[2].replace("--import my_waves ", "").replace("/forecasts", "/others"), folder)
    assert without.returncode == 2
    assert without.stderr.count("\n") == 1 and "convolutions" in without.stderr and "registered" in without.stderr


def test_ops_predictions_and_names_of_the_page(folder):
    """What the commands don't reach, in a process of its own so that nothing stays registered here."""
    program = """
import torch, my_waves
from dydiff_dist.diffusion import build_process, sample, start_noise, timestep_grid
assert torch.equal(my_waves.half(torch.ones(2)), torch.full((2,), 0.5)) and my_waves.HALF.name == "half"
for fields in ({"process": "turning"}, {"process": "flow_matching", "prediction": "half_velocity"}):
    process = build_process(**fields)
    x = torch.ones(1, 4, 1, 8, 8)
    def oracle(z, t):
        row = process.table.at(t)
        shape = (-1, 1, 1, 1, 1)
        a, s, p, q = (c.view(shape) for c in (row.signal, row.noise, row.target_noise, row.target_signal))
        return (p * (z - a * x) / s + q * x).float()
    grid = timestep_grid(process.table, 6, "trailing")
    start = start_noise(process, x.shape, grid[0], torch.randn(x.shape))
    frames = sample(process, oracle, start=start, timesteps=grid, sampler="calming", noise=torch.randn(6, *x.shape))
    torch.testing.assert_close(frames, x, rtol=0, atol=1e-4)
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.parametrize("path", re.findall(r"`((?:data|diffusion|models|engine)/[\w/]+\.py)`", PAGE))
def test_files_that_the_page_names_exist(path):
    assert (ROOT / "dydiff_dist" / path).is_file()
