"""The model that comes with the package forecasts what it forecast when it was made, and its files name no place."""

import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from run_commands import ROOT, run

from dydiff_dist.files import file_sha256
from dydiff_dist.forecasting import CaseReader, ForecastRun, Verification, forecast_case, load_forecaster

SHIPPED = ROOT / "dydiff_dist" / "demo"
EXPECTED = json.loads((Path(__file__).parent / "shipped_forecast.json").read_text())
"""Member 0 of case 2 at every 16th point, seed 0, as it came out when the model was exported."""


def test_it_forecasts_what_it_forecast():
    """Our kernels and their torch reference differ by 1.8e-6 after the four steps (velocities of 0.64): 3e-5 leaves
    twenty times that to other processors and torch versions, whose matrix products round in other orders."""
    cases = CaseReader.for_model(SHIPPED / "model", SHIPPED / "cases")
    forecast = forecast_case(load_forecaster(SHIPPED / "model", device="cpu"), cases.read(2), num_members=1)
    np.testing.assert_allclose(forecast.members[0, :, :, ::16, ::16], EXPECTED["members"], rtol=0, atol=3e-5)


@pytest.mark.parametrize(("random_shifts", "edge"), [(True, None), (False, 16)])
def test_patches_are_judged_only_where_they_stay(tmp_path, random_shifts, edge):
    options = {"num_members": 2, "num_cases": 1, "device": "cpu"}
    sampling = {"num_steps": 1, "random_shifts": random_shifts}
    forecasts = ForecastRun(SHIPPED / "model", SHIPPED / "cases", tmp_path, sampling=sampling, **options)
    forecasts.run()
    assert forecasts.store.request.patch_pixels == edge
    suites = [suite.name for suite in Verification.open(tmp_path).choose_suites()]
    assert ("blockiness" in suites) == (edge is not None)


def texts(path: Path) -> Iterator[bytes]:
    """What a file says in words: all of a JSON or Markdown file, the header of safetensors, what a tar says of members
    and their JSON."""
    if path.suffix == ".safetensors":
        with open(path, "rb") as file:
            yield file.read(int.from_bytes(file.read(8), "little"))
    elif path.suffix == ".tar":
        with tarfile.open(path) as tar:
            for member in tar:
                yield repr(member.get_info()).encode()
                if member.name.endswith(".json"):
                    yield tar.extractfile(member).read()
    else:
        yield path.read_bytes()


def test_its_files_are_small_and_name_no_place():
    paths = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert len(paths) >= 5 and all(path.stat().st_size < 4_000_000 for path in paths)
    place = re.compile(rb"[\s\"'=(](/|~/|[A-Za-z]:\\|\w+://)\w[^\s\"']*")
    assert not {path.name: found.group() for path in paths for text in texts(path) if (found := place.search(text))}


def test_it_is_the_demos_model():
    """Whoever changes the demo's configuration makes the model anew."""
    shipped = json.loads((SHIPPED / "model" / "config.json").read_text())["run"]
    first, second = (
        json.loads((ROOT / "configs" / f"turbulence_{name}.json").read_text()) for name in ("small", "fewstep")
    )
    for section, demo in {"model": first, "diffusion": first, "sampling": second, "score": second}.items():
        for key, value in demo[section].items():
            assert shipped[section][key] == value, f"{section}.{key}"
    for key in ("steps", "global_batch_size", "learning_rate", "num_members"):
        assert shipped["training"][key] == second["training"][key], f"training.{key}"


@pytest.mark.slow
def test_a_forecast_in_half_a_minute(tmp_path):
    command = [sys.executable, "tools/demo.py", "--out", tmp_path / "out", "--members", "2"]
    first = run(command)
    assert first.returncode == 0, first.stderr
    pictures = {path: file_sha256(path) for path in (tmp_path / "out" / "forecasts").iterdir()}
    again = run(command)
    assert again.returncode == 0 and "reused: 8 of 8 cases" in again.stdout
    assert pictures == {path: file_sha256(path) for path in pictures}
    for kind, name in (("picture", "forecast_000000.png"), ("report", "report.html")):
        (line,) = re.findall(f"^{kind}: +(.*)$", again.stdout, re.MULTILINE)
        assert line == str(tmp_path / "out" / "scores" / name)
