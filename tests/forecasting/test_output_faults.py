"""Every tool that writes, where it can't: one line with the path and what to do, and nothing half-written."""

import base64
import ctypes
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_commands import ROOT, environment

from dydiff_dist.autoencoders import AutoencoderModelConfig, build_network, save_autoencoder
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.evaluation.score_files import write_scores
from dydiff_dist.forecasting import ForecastRun
from dydiff_dist.forecasting.verification import Verification

FAULTS = {
    "file in the path": r"Not a directory; a part of the path is a file|File exists; it is there already",
    "no permission": r"Permission denied; get the right to it",
    "read-only": r"Read-only file system; it is mounted read-only",
    "full": r"No space left on device; 0 MiB are free: make room there|0\.0 GB are free; make room",
    "limited": r"File too large; files may not be that large",
}
NEED_MOUNTS = ("read-only", "full")
TOOLS = ("make_shards", "forecast to npz", "forecast to zarr", "evaluate", "report", "encode_latents")


def _drop_rights_to_everything() -> None:
    """Permissions hold for root too in what is started next: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def _save_autoencoder(folder: Path) -> None:
    """Of random weights, for the flow's frames."""
    config = AutoencoderModelConfig(latent_channels=2, channels=(8, 8), layers_per_block=1, norm_groups=4)
    save_autoencoder(
        folder,
        build_network(config, num_channels=2, frame_size=16),
        frames=FrameSchema(num_frames=7, shape=(2, 16, 16), dtype="float32"),
        pixel_shift=(0.0, 0.0),
        pixel_scale=(1.0, 1.0),
        latent_shift=(0.0, 0.0),
        latent_scale=(1.0, 1.0),
        latent_channels=2,
        spatial_ratio=config.spatial_ratio,
    )


def _can_mount() -> bool:
    probe = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def outcomes(flow_model, flow_shards, tmp_path_factory) -> dict[str, list]:
    """How each tool ended at each fault, by ``tool: fault``; all in one process, whose mounts end with it."""
    work = tmp_path_factory.mktemp("faults")
    (work / "arrays").mkdir()
    np.save(work / "arrays" / "a.npy", np.random.default_rng(0).normal(size=(20, 5, 2, 16, 16)).astype(np.float32))
    forecasts = ForecastRun(flow_model, flow_shards / "test", work / "forecasts", num_members=2, device="cpu")
    forecasts.run()
    write_scores(Verification.open(work / "forecasts").evaluate(), work / "scores")
    _save_autoencoder(work / "autoencoder")
    forecast = ["forecast.py", flow_model, "--shards", flow_shards / "test", "--device", "cpu"]
    commands = {
        "make_shards": ["make_shards.py", "arrays", "--root", work / "arrays", "--num-frames", "5"],
        "forecast to npz": [*forecast, "--members", "3"],
        "forecast to zarr": [*forecast, "--members", "3", "--format", "zarr"],
        "evaluate": ["evaluate.py", work / "forecasts", "--scores"],
        "report": ["report.py", f"a={work / 'scores'}"],
        "encode_latents": ["encode_latents.py", work / "autoencoder", "--shards", flow_shards, "--device", "cpu"],
    }
    can_mount = _can_mount()
    jobs = []
    for tool, (name, *arguments) in commands.items():
        for fault in FAULTS:
            if can_mount or fault not in NEED_MOUNTS:
                place = work / f"{tool} {fault}".replace(" ", "_")
                # a report is a file, the others' output a folder; all in a folder that is to be made, but for one
                inside = {"report": "page.html", "evaluate": "."}.get(tool, "out")
                command = [ROOT / "tools" / name, *arguments, "--out", place / inside]
                jobs.append((f"{tool}: {fault}", fault, str(place), [str(word) for word in command]))
    start = [sys.executable, str(Path(__file__).with_name("output_faults.py")), json.dumps(jobs)]
    start = ["unshare", "-m", *start] if can_mount else start
    rights = _drop_rights_to_everything if os.geteuid() == 0 else None
    done = subprocess.run(
        start, capture_output=True, text=True, timeout=560, env=environment(), cwd=ROOT, preexec_fn=rights, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_cannot_write_says_so_in_a_line_and_leaves_nothing_half_written(outcomes, tool, fault) -> None:
    if f"{tool}: {fault}" not in outcomes:
        pytest.skip("no right to mount here (unshare -m, mount); RLIMIT_FSIZE stands in for a full disk")
    status, said, left = outcomes[f"{tool}: {fault}"]
    assert status == 2, said
    *progress, line = said.removesuffix("\n").split("\n")
    assert all("shard/s]" in before or "frame/s]" in before for before in progress)
    assert line.startswith("error: ") and re.search(FAULTS[fault], line) and "Errno" not in line
    assert f"{tool} {fault}".replace(" ", "_") in line  # the path
    for name, content in left.items():
        _check_whole(name, base64.b64decode(content))
    if fault in ("read-only", "no permission", "file in the path"):
        assert left == {}


def _check_whole(name: str, content: bytes) -> None:
    """Fails unless the file is complete."""
    assert not name.endswith(".partial")
    if name.endswith(".json"):
        json.loads(content)
    elif name.endswith((".npz", ".zip")):
        assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    elif name.endswith((".png", ".gif")):
        Image.open(io.BytesIO(content)).verify()
