"""The store's promises: complete or invisible, the newest whole one is found, failures are one line and lose nothing.

No engine is needed for them: a run without networks has checkpoints all the same. test_checkpoint_ranks.py has engines
and ranks.
"""

import json
import logging
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from dydiff_dist.checkpoints import folder as checkpoint_folder
from dydiff_dist.checkpoints import store as checkpoint
from dydiff_dist.checkpoints.position import RunPosition
from dydiff_dist.checkpoints.store import CheckpointStore
from dydiff_dist.ranks.world import World

WORLD = World(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
CONFIG = {"model": {"width": 16}}


def open_store(folder: Path, **options) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", WORLD, {}, **{"keep_last": 2, **options})


def save(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(RunPosition(step, step + 1), CONFIG)
    store.wait()


def load(store: CheckpointStore) -> RunPosition:
    return store.load_latest(lambda config, data: None)


def names(folder: Path) -> list[str]:
    """Everything in the folder of checkpoints, hidden leftovers included."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name != ".lock")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_newest_and_every_so_manyeth_stay(tmp_path, asynchronous):
    store = open_store(tmp_path, keep_every=30, asynchronous=asynchronous)
    assert load(store) == RunPosition()
    save(store, *range(10, 101, 10))
    kept = [30, 60, 90, 100]
    assert names(tmp_path) == ["latest", *(f"step_{step:06d}" for step in kept)]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_000100\n"
    assert load(store) == RunPosition(100, 101)


def test_the_newest_is_by_steps_not_by_spelling(tmp_path):
    save(open_store(tmp_path), 999_999, 1_000_000)
    assert load(open_store(tmp_path)) == RunPosition(1_000_000, 1_000_001)


def test_a_damaged_newest_falls_back_loudly_and_is_set_aside(tmp_path, caplog):
    save(open_store(tmp_path, keep_last=3), 1, 2, 3)
    folder = tmp_path / "checkpoints"
    truncated, flipped = folder / "step_000003" / "layout.json", folder / "step_000002" / "rank_00000.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-1])
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    store = open_store(tmp_path, keep_last=3)
    with caplog.at_level(logging.WARNING):
        assert load(store) == RunPosition(1, 2)
    for fact in (
        "step_000003: layout.json has",
        "step_000002: rank_00000.safetensors differs from its SHA-256",
        "going back to",
    ):
        assert fact in caplog.text
    assert names(tmp_path) == ["damaged_step_000002", "damaged_step_000003", "latest", "step_000001"]
    save(store, 2)
    assert load(open_store(tmp_path)) == RunPosition(2, 3)


def test_nothing_but_damage_is_an_error_that_touches_nothing(tmp_path):
    save(open_store(tmp_path), 1, 2)
    for sums in (tmp_path / "checkpoints").glob("*/SHA256SUMS"):
        sums.unlink()
    before = names(tmp_path)
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged \(step_000002: SHA256SUMS"):
        load(open_store(tmp_path))
    assert names(tmp_path) == before


def test_another_run_is_refused_before_anything_is_loaded_or_written(tmp_path):
    save(open_store(tmp_path), 1)
    before = names(tmp_path)

    def refuse(config: dict, data: str | None) -> None:
        assert config == CONFIG
        raise ValueError("holds another run")

    with pytest.raises(ValueError, match="holds another run"):
        open_store(tmp_path).load_latest(refuse)
    assert names(tmp_path) == before


def test_a_checkpoint_of_an_older_format_is_one_clear_line(tmp_path):
    save(open_store(tmp_path), 1)
    facts = tmp_path / "checkpoints" / "step_000001" / "complete.json"
    tree = json.loads(facts.read_text())
    del tree["format_version"]
    facts.write_text(json.dumps(tree))
    facts.with_name("SHA256SUMS").unlink()  # that format had none
    with pytest.raises(ValueError, match="has checkpoint format 1, this version reads 2"):
        load(open_store(tmp_path))


def test_a_checkpoint_of_a_newer_format_is_refused_not_passed_over(tmp_path, monkeypatch):
    save(open_store(tmp_path), 1)
    monkeypatch.setattr(checkpoint_folder, "FORMAT_VERSION", 3)
    save(open_store(tmp_path), 2)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has checkpoint format 3, this version reads 2"):
        load(open_store(tmp_path))


@pytest.mark.parametrize("version", ["7", "null", '"2"', "[]", "1e999"])
def test_a_damaged_version_in_the_newest_is_damage_and_falls_back(tmp_path, caplog, version):
    save(open_store(tmp_path), 1, 2)
    facts = tmp_path / "checkpoints" / "step_000002" / "complete.json"
    facts.write_text(facts.read_text().replace('"format_version": 2', f'"format_version": {version}'))
    with caplog.at_level(logging.WARNING):
        assert load(open_store(tmp_path)) == RunPosition(1, 2)
    assert "damaged: step_000002: complete.json differs from its SHA-256" in caplog.text


def test_a_position_in_batches_of_an_older_version_is_read_in_samples():
    facts = {"position": {"step": 3, "batches": 5}, "config": {"training": {"global_batch_size": 8}}}
    assert RunPosition.of(facts) == RunPosition(3, 40)


def test_an_interrupted_save_is_invisible_and_cleared_away(tmp_path):
    save(open_store(tmp_path), 1)
    folder = tmp_path / "checkpoints"
    (folder / ".step_000002.partial").mkdir()
    (folder / ".step_000002.partial" / "rank_00000.safetensors").write_bytes(b"half")
    (folder / ".step_000000.deleted").mkdir()
    (folder / "step_000001").rename(folder / ".step_000001.replaced")  # killed between two renames
    store = open_store(tmp_path)
    assert load(store) == RunPosition(1, 2)
    assert names(tmp_path) == ["latest", "step_000001"]


def test_no_room_is_one_line_and_loses_nothing(tmp_path):
    store = open_store(tmp_path)
    save(store, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # a real error of the system, in the thread
    try:
        store.save(RunPosition(2, 2), CONFIG)
        with pytest.raises(ValueError, match=r"step_000002 could not be written: File too large; .* kept") as caught:
            store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["latest", "step_000001"]
    save(store, 3)  # the store itself is as good as before
    assert load(store) == RunPosition(3, 4)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output_dir .*file can't be written: Not a directory"):
        open_store(tmp_path / "file")


def test_a_failure_in_the_thread_surfaces_and_the_older_ones_stay(tmp_path, monkeypatch):
    store = open_store(tmp_path, keep_last=1)
    save(store, 1)
    assert not store.has_failed()
    monkeypatch.setattr(checkpoint, "file_sha256", lambda path: "0" * 64)
    store.save(RunPosition(2, 2), CONFIG)
    store.wait_briefly()
    assert store.has_failed()
    with pytest.raises(ValueError, match="reads back differently from what was written"):
        store.save(RunPosition(3, 3), CONFIG)
    assert names(tmp_path) == ["latest", "step_000001"]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    store, may_write = open_store(tmp_path), threading.Event()
    write = checkpoint.write_tensor_file
    monkeypatch.setattr(checkpoint, "write_tensor_file", lambda *given: may_write.wait(10) and write(*given))
    report = store.save(RunPosition(1, 1), CONFIG)
    assert report.pause_sec < 5 and names(tmp_path) == [".step_000001.partial"]
    may_write.set()
    store.wait()
    assert load(store) == RunPosition(1, 1)


def test_a_folder_is_trained_by_one_run_at_a_time(tmp_path):
    save(open_store(tmp_path), 1)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD_LOCK, tmp_path / "checkpoints" / ".lock"], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="is being trained by process 1 on there; wait for its end"):
        open_store(tmp_path)
    holder.kill()  # a lock doesn't outlive its process, however that dies
    holder.wait()
    assert load(open_store(tmp_path)) == RunPosition(1, 2)
    assert f"process {os.getpid()} on" in (tmp_path / "checkpoints" / ".lock").read_text()


_HOLD_LOCK = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 1 on there")
file.flush()
print("held", flush=True)
time.sleep(60)
"""
