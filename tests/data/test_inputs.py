"""Inputs as people keep them: folders with links and capitals, names of any kind, files that change."""

import os
from pathlib import Path

import pytest

from dydiff_dist.data.inputs import HASHED_BYTES, find_files, input_state, printable, unique_stems
from dydiff_dist.data.shard_writer import MAX_KEY_BYTES, plain_key
from dydiff_dist.data.source import BadItem, LeftOut


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_all_files_are_found_or_named(tmp_path):
    root, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    touch(root, "a.npy", "B.NPY", "notes.txt", ".DS_Store", "deep/er/c.npy", "store.zarr/0.0")
    touch(elsewhere, "d.npy")
    (root / "linked").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)
    (root / "round").symlink_to(root)
    (root / "gone.npy").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe.npy")
    found = find_files(root, (".npy",), folder_suffix=".zarr")
    assert found.files == ["B.NPY", "a.npy", "again/d.npy", "deep/er/c.npy", "store.zarr"]
    bad = {item.name: item.reason for item in found.aside if isinstance(item, BadItem)}
    assert bad == {"gone.npy": "it is a link to nothing", "pipe.npy": "it is neither a file nor a folder"}
    left = {item.name for item in found.aside if isinstance(item, LeftOut)}
    assert left == {"notes.txt", ".DS_Store", "linked", "round"}


def test_a_folder_without_inputs_says_what_it_holds(tmp_path):
    touch(tmp_path, "a.txt", "b.txt")
    with pytest.raises(FileNotFoundError, match=r"holds no .npy file; give another --root; it holds a.txt, b.txt"):
        find_files(tmp_path, (".npy",))
    with pytest.raises(FileNotFoundError, match=r"is not a folder; --files must be"):
        find_files(tmp_path / "nowhere", (".npy",), option="--files")


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Val", "dev"])
def test_split_folders_have_several_names(tmp_path, valid):
    touch(tmp_path, "train/a.npy", f"{valid}/b.npy", "Test/deep/c.npy", "extra/d.npy", "e.npy")
    found = find_files(tmp_path, (".npy",))
    assert found.by_split() == {"train": ["train/a.npy"], "valid": [f"{valid}/b.npy"], "test": ["Test/deep/c.npy"]}
    assert {item.name for item in found.aside} == {"extra/d.npy", "e.npy"}


def test_without_split_folders_there_are_no_splits(tmp_path):
    touch(tmp_path, "run1/a.npy", "b.npy")
    assert find_files(tmp_path, (".npy",)).by_split() is None


NAMES = [
    *("Überflug_1.npy", "Überflug-1.npy", "飛行.npy", "run 1 (2).npy", "x" * 150 + ".npy", "x" * 151 + ".npy", ".npy"),
    *("a.npy", "a.npz", "a-0.npy", "a-00001.npy", "b/c.npy", "b-c.npy", "b.c.npy", "new\nline.npy", "-.npy"),
    os.fsdecode(b"\xff\xfe.npy"),
]


def test_stems_are_plain_and_stay_apart_whatever_follows():
    stems = unique_stems(NAMES)
    assert len(set(stems.values())) == len(NAMES)
    for stem in stems.values():
        assert plain_key(f"{stem}-00000-00000") == f"{stem}-00000-00000" and len(stem) <= MAX_KEY_BYTES - 20
    single = {f"{stem}-{start:05d}" for stem in stems.values() for start in range(3)}
    several = {f"{stem}-{n:05d}-{start:05d}" for stem in stems.values() for n in range(3) for start in range(3)}
    assert len(single) == 3 * len(NAMES) and len(several) == 9 * len(NAMES) and not single & several


def test_plain_names_stay_what_they_are():
    assert unique_stems(["train/run-0001.npy", "train/run-0002.npy"]) == {
        "train/run-0001.npy": "train-run-0001",
        "train/run-0002.npy": "train-run-0002",
    }


def test_a_changed_file_has_another_state(tmp_path):
    small, large, store = tmp_path / "small", tmp_path / "large", tmp_path / "a.zarr"
    small.write_bytes(b"1")
    large.write_bytes(bytes(HASHED_BYTES + 1))
    touch(store, "0", "1")
    before = [input_state(path) for path in (small, large, store)]
    os.utime(small, ns=(1, 1))
    assert input_state(small) == before[0]  # the same content at another time
    small.write_bytes(b"2")
    os.utime(small, ns=(1, 1))
    os.utime(large, ns=(1, 1))
    (store / "1").unlink()
    after = [input_state(path) for path in (small, large, store)]
    assert all(one != other for one, other in zip(before, after, strict=True))
    small.unlink()
    assert input_state(small) not in (before[0], after[0])


def test_any_name_can_be_printed():
    assert printable(os.fsdecode(b"\xff") + "ü\n") == "\\udcffü\\n"
