"""What a study's rows say of the code they come from."""

import subprocess

import pytest

import dydiff_dist
from dydiff_dist.study.runner import commit


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
