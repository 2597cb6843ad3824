"""What the system refuses while a run is trained, exported or studied: one line with the path and what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_commands import ROOT, TRAIN, environment, run

pytestmark = pytest.mark.slow

FULL, READ_ONLY, FILE, LIMIT = "full disk", "read-only disk", "path through a file", "limit on file sizes"
SAYS = {
    FULL: ("No space left on device", "make room"),
    READ_ONLY: ("Read-only file system", "choose another place"),
    FILE: ("file", "another path"),
    LIMIT: ("File too large", "raise the limit (ulimit -f)"),
}
LIMITED = "import os, resource, sys; resource.setrlimit(resource.{0}, ({1}, {1})); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def place(tmp_path, request):
    """A folder, below ``tmp_path``, in which ``request.param`` happens to whoever writes."""
    fault, folder = request.param, tmp_path / "place"
    folder.mkdir()
    if fault in (FULL, READ_ONLY):
        options = "size=64k" if fault == FULL else "size=64k,ro"
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
        if fault == FULL:
            (folder / "filler").write_bytes(bytes(32 * 1024))
    elif fault == FILE:
        (folder / "file").write_text("")
    yield fault, folder / "file" if fault == FILE else folder
    subprocess.run(["umount", folder], capture_output=True)


def check(fault: str, command: list, folder: Path) -> None:
    """One line that names the place, what is wrong and what to do; no traceback; status 2."""
    words = [str(word) for word in (sys.executable, *command)]
    if fault == LIMIT:
        words = [sys.executable, "-c", LIMITED.format("RLIMIT_FSIZE", 4096), *words]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment(), timeout=300)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
    reason, advice = SAYS[fault]
    assert str(folder) in lines[0] and reason in lines[0] and advice in lines[0], lines[0]


FAULTS = pytest.mark.parametrize("place", [FULL, READ_ONLY, FILE, LIMIT], indirect=True)


@FAULTS
def test_train(tiny_config, place):
    fault, folder = place
    check(fault, [TRAIN, tiny_config, f"output_dir={folder}/run", "training.validate_every_steps=0"], folder)


@pytest.mark.parametrize("place", [FULL, FILE], indirect=True)
def test_train_vae(tiny_config, place):
    fault, folder = place
    tree = json.loads(tiny_config.read_text())
    tree = {key: tree[key] for key in ("data", "training")} | {"output_dir": f"{folder}/run"}
    tree["model"] = {"latent_channels": 2, "channels": [8, 8], "layers_per_block": 1, "norm_groups": 4}
    tree["training"] |= {"validate_every_steps": 0, "num_validation_samples": 2, "num_measured_samples": 4}
    for key in ("num_validation_cases", "num_validation_members"):
        del tree["training"][key]
    tiny_config.write_text(json.dumps(tree))
    check(fault, ["tools/train_vae.py", tiny_config], folder)


@pytest.fixture(scope="module")
def trained(tiny_shards, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained")
    tree = {
        "output_dir": str(folder / "run"),
        "data": {
            "train": str(tiny_shards / "train"),
            "num_history_frames": 2,
            "num_future_frames": 4,
            "num_workers": 0,
        },
        "model": {"width": 64, "depth": 1, "num_heads": 2, "patch_size": 4},
        "training": {"steps": 1, "global_batch_size": 2, "micro_batch_per_gpu": 2, "learning_rate": 1e-3},
    }
    (folder / "tiny.json").write_text(json.dumps(tree))
    done = run([sys.executable, TRAIN, folder / "tiny.json"])
    assert done.returncode == 0, done.stderr
    return folder / "run"


@FAULTS
def test_export(trained, place):
    fault, folder = place
    check(fault, ["tools/export.py", trained, "--out", f"{folder}/model"], folder)


def test_an_export_that_goes_back_to_an_older_checkpoint_says_so(trained, tmp_path):
    newest = trained / "checkpoints" / "step_000009"
    newest.mkdir()
    for file in (trained / "checkpoints" / "step_000001").iterdir():
        (newest / file.name).write_bytes(file.read_bytes())
    facts = newest / "complete.json"
    facts.write_text(facts.read_text().replace('"format_version": 2', '"format_version": 7'))
    done = run([sys.executable, "tools/export.py", trained, "--out", tmp_path / "model"])
    assert done.returncode == 0 and "step_000001 ->" in done.stdout
    assert done.stderr.startswith("damaged: step_000009: complete.json") and "going back to" in done.stderr


@pytest.mark.parametrize("place", [READ_ONLY, FILE], indirect=True)
def test_study(tiny_config, tiny_shards, place):
    fault, folder = place
    study = {
        "title": "Tiny",
        "base": str(tiny_config),
        "arms": {
            name: {"label": name, "set": {"diffusion.gamma_ratio": ratio}} for name, ratio in (("a", 0), ("b", 0.5))
        },
        "shards": str(tiny_shards / "test"),
        "forecasts": {"main": {"members": 2, "cases": 3}},
        "comparisons": [{"title": "DyDiff or not", "reference": "a", "against": ["b"], "curves": "lead"}],
    }
    path = tiny_config.with_name("small.json")
    path.write_text(json.dumps(study))
    command = ["tools/study.py", path, "--runs", f"{folder}/runs", "--out", f"{folder}/tables"]
    done = run([sys.executable, *command])
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    reason, advice = SAYS[fault]
    said = done.stdout + done.stderr
    assert reason in said and advice in said and str(folder) in said, said


def test_limits_on_open_files_and_addresses(tiny_config):
    few = LIMITED.format("RLIMIT_NOFILE", 24)
    done = run([sys.executable, "-c", few, sys.executable, TRAIN, tiny_config])
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Too many open files" in line and "ulimit -n" in line
    narrow = LIMITED.format("RLIMIT_AS", 3_000_000 * 1024)
    done = run([sys.executable, "-c", narrow, sys.executable, TRAIN, tiny_config, "training.validate_every_steps=0"])
    assert done.returncode == 0, done.stderr  # a network of some thousand parameters needs no more
