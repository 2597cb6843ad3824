"""What a study says of its trainings: the code they come from, and why one failed."""

import subprocess

import pytest

import dydiff_dist
from dydiff_dist.study.runner import commit, reason_of_failure


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A committed tree that passes for the one the package lies in."""
    for name in ("dydiff_dist/__init__.py", "configs/run.json", "docs/study/tiny_runs.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    monkeypatch.setattr(dydiff_dist, "__file__", str(tmp_path / "dydiff_dist" / "__init__.py"))
    return tmp_path


def git(root, *words):
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout(checkout):
    assert commit() == git(checkout, "rev-parse", "--short=12", "HEAD")


@pytest.mark.parametrize(
    ("changed", "dirty"),
    [("dydiff_dist/__init__.py", True), ("configs/run.json", True), ("docs/study/tiny_runs.csv", False)],
)
def test_dirty_means_code_or_configurations(checkout, changed, dirty):
    (checkout / changed).write_text("second\n")
    assert commit().endswith("-dirty") == dirty


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(dydiff_dist, "__file__", str(tmp_path / "dydiff_dist" / "__init__.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == ""


def test_a_training_that_fails_under_a_launcher_is_named_by_its_own_error(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("error: of an earlier start\n")
    begin = log.stat().st_size
    page = "=" * 60 + "\ntrain.py FAILED\n" + "=" * 60 + "\n"
    log.write_text(log.read_text() + "step 1/2: loss 1\nerror: global_batch_size is 2\n" + page)
    assert reason_of_failure(log, begin) == "error: global_batch_size is 2"
    log.write_text("error: of an earlier start\nstep 1/2: loss 1\nKilled\n")
    assert reason_of_failure(log, begin) == "Killed"
