"""The converter's own rules, which hold for every source: bad inputs, keys, splits that agree, inputs that change."""

import errno
import gc
import hashlib
import json
import multiprocessing
import os
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset

from dydiff_dist.data.convert import convert
from dydiff_dist.data.inputs import SPLITS
from dydiff_dist.data.manifest import Manifest, ShardIndex, manifest_identity, read_document
from dydiff_dist.data.members import PLAIN
from dydiff_dist.data.shard_jobs import ShardJob, ShardRecord
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem, LeftOut, Source, schema_of, split_tasks
from dydiff_dist.strict_config import StrictConfig


class JsonConfig(StrictConfig):
    """Where the files are."""

    root: str
    per_shard: int = 4


class JsonSource(Source[JsonConfig]):
    """Files SPLIT-NAME.json, each {"fill": value, "size": side, …}, one sample of its own."""

    name = "json_files"

    def plan(self):
        files = sorted(path.name for path in Path(self.config.root).glob("*.json"))
        by_split = {split: [(n, 4096) for n in files if n.startswith(split)] for split in SPLITS}
        return split_tasks(by_split, self.config.per_shard, [LeftOut("it is not of this kind", "README")])

    def read_item(self, item):
        facts = json.loads((Path(self.config.root) / item).read_text())
        if "left_out" in facts:
            yield LeftOut(facts["left_out"])
            return
        frames = np.full((3, 1, facts.get("size", 4), 4), facts["fill"], facts.get("dtype", "float32"))
        frames += np.arange(3, dtype=frames.dtype)[:, None, None, None]
        arrays = {name: np.array(facts[name]) for name in ("actions", "states") if name in facts}
        yield Sample(facts.get("key", item.removesuffix(".json")), frames, **arrays)

    def item_files(self, item):
        return [Path(self.config.root) / item]

    def schema(self, sample):
        return schema_of(sample)

    def independent(self, split):
        return "case"


def write(root: Path, **files: object) -> JsonSource:
    root.mkdir(exist_ok=True)
    for name, facts in files.items():
        text = facts if isinstance(facts, str) else json.dumps(facts)
        (root / f"{name.replace('_', '-')}.json").write_text(text)
    return JsonSource(JsonConfig(root=str(root)))


def many(root: Path, count: int = 24, **others: object) -> JsonSource:
    usual = {f"train_{n:02d}": {"fill": n} for n in range(count)} | {"test_00": {"fill": 1}}
    return write(root, **usual | others)


def keys(folder: Path) -> list[str]:
    shards = ShardSet.open(folder, check="sha256")
    return [shards.read(shards.address(number)).key for number in range(len(shards))]


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path):
    heard: list[BadItem] = []
    source = many(tmp_path / "in", train_07="{", train_08="")
    report = convert(source, tmp_path / "out", max_bad_rate=0.1, on_bad_item=heard.append)
    assert {item.name for item in report.bad_items} == {"train-07.json", "train-08.json"} and heard == report.bad_items
    assert len(keys(tmp_path / "out" / "train")) == 22
    assert read_document(report.manifests["train"], Manifest).details["rejected_items"] == 2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Can't open"),
        EOFError(),
        MemoryError("8 TiB"),
        zlib.error("bad"),
        TypeError("no"),
        ImportError("no codec"),
        NotImplementedError("codec"),
        OSError(5, "I/O"),
    ],
)
def test_it_does_not_matter_what_a_reader_raises(tmp_path, error, monkeypatch):
    source, good = many(tmp_path / "in"), JsonSource.read_item

    def read_item(self, item):
        if item == "train-03.json":
            raise error
        yield from good(self, item)

    monkeypatch.setattr(JsonSource, "read_item", read_item)
    report = convert(source, tmp_path / "out")
    (bad,) = report.bad_items
    assert bad.name == "train-03.json" and bad.reason and "\n" not in bad.reason


@pytest.mark.parametrize("error", [AssertionError("a bug"), OSError(24, "Too many open files")])
def test_bugs_and_a_machine_that_is_full_are_no_fault_of_an_input(tmp_path, error, monkeypatch):
    monkeypatch.setattr(JsonSource, "read_item", lambda self, item: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        convert(many(tmp_path / "in"), tmp_path / "out")


@pytest.mark.parametrize(
    ("rate", "num_bad", "passes"), [(0.0, 1, False), (0.05, 1, True), (0.05, 3, False), (0.2, 3, True)]
)
def test_the_rate_decides_for_few_inputs_too(tmp_path, rate, num_bad, passes):
    source = many(tmp_path / "in", 10, **{f"train_{n:02d}": "{" for n in range(num_bad)})
    if passes:
        assert convert(source, tmp_path / "out", max_bad_rate=rate).manifests
    else:
        with pytest.raises(ValueError, match=rf"{num_bad} of 11 inputs are bad, .* the first is train-00.json: .*rate"):
            convert(source, tmp_path / "out", max_bad_rate=rate)


def test_a_lost_file_counts_as_an_input_however_many_samples_others_hold(tmp_path, monkeypatch):
    """4 of 20 files, at which it stops, but a small share of the samples."""
    source, good = many(tmp_path / "in", **{f"train_{n:02d}": "{" for n in range(4)}), JsonSource.read_item

    def read_item(self, item):
        for sample in good(self, item):
            yield from (Sample(f"{sample.key}-{n}", sample.frames) for n in range(100))

    monkeypatch.setattr(JsonSource, "read_item", read_item)
    with pytest.raises(ValueError, match="4 of 20 inputs are bad"):
        convert(source, tmp_path / "out", max_bad_rate=0.05)


def test_shards_without_a_good_sample_are_no_files(tmp_path):
    bad = {f"train_{n:02d}": "{" for n in range(4)}
    source = many(tmp_path / "in", 12, **bad, train_04={"left_out": "too old"}, valid_00="{")
    report = convert(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "train").glob("*.tar")) == [
        "train-000001.tar",
        "train-000002.tar",
    ]
    assert len(keys(tmp_path / "out" / "train")) == 7 and report.left_out == {"too old": 1}
    assert set(report.manifests) == {"train", "test"} and "valid-00.json" in report.missing_splits["valid"]
    assert "no valid split: all of its inputs were rejected, 1 in all" in "\n".join(report.describe())
    assert convert(source, tmp_path / "out").num_reused == 5


def test_no_good_sample_for_training_says_why(tmp_path):
    source = write(tmp_path / "in", train_00="{", test_00={"fill": 1})
    with pytest.raises(
        ValueError, match=r"split 'train' has no sample: all .* rejected, 1 in all; the first is train-00"
    ):
        convert(source, tmp_path / "out")


NOT_FINITE = {
    "frames": {"fill": float("nan")},
    "actions": {"fill": 0, "actions": [[0.0], [float("inf")], [0.0]]},
    "large": {"fill": 0, "actions": [[0.0], [1e300], [0.0]]},
    "states": {"fill": 0, "states": [[0.0], [0.0], [float("nan")]]},
}


@pytest.mark.parametrize("which", NOT_FINITE)
def test_no_array_may_hold_nan(tmp_path, which):
    others = {"actions": [[0.0]] * 3} if "actions" in NOT_FINITE[which] else {}
    files = {f"train_{n:02d}": {"fill": n, **others} for n in range(8)}
    source = write(tmp_path / "in", **files | {"train_03": NOT_FINITE[which], "test_00": {"fill": 1, **others}})
    (bad,) = convert(source, tmp_path / "out").bad_items
    assert bad.name.startswith("train-03.json") and "missing, NaN or infinite" in bad.reason


@pytest.mark.parametrize("actions", [[], [[]], [[0.0], [1.0]], [0.0, 1.0, 2.0], [["a"], ["b"], ["c"]]])
def test_actions_of_another_shape_are_named(tmp_path, actions):
    source = many(tmp_path / "in", train_03={"fill": 1, "actions": actions})
    (bad,) = convert(source, tmp_path / "out").bad_items
    assert bad.name.startswith("train-03.json") and "its actions" in bad.reason


def test_arrays_of_any_byte_order_are_stored_in_the_machines(tmp_path):
    files = {f"train_{n:02d}": {"fill": n, "dtype": dtype} for n, dtype in enumerate((">f4", "<f4"))}
    convert(write(tmp_path / "in", **files), tmp_path / "out")
    shards = ShardSet.open(tmp_path / "out" / "train")
    frames = [shards.read(shards.address(number)).frames for number in range(2)]
    assert [array.dtype for array in frames] == [np.float32] * 2 and frames[0][2, 0, 0, 0] == 2


@pytest.mark.parametrize("other", [{"size": 8}, {"dtype": "uint8"}, {"actions": [[0.0]] * 3}])
def test_splits_that_differ_are_refused_before_anything_is_written(tmp_path, other):
    source = many(tmp_path / "in", test_00={"fill": 1, **other})
    with pytest.raises(
        ValueError, match=r"the splits differ: 'test' \(test-00.json\) has .* as 'train' \(train-00.json\)"
    ):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sample_unlike_the_first_is_rejected_in_whatever_shard_it_is(tmp_path):
    source = many(tmp_path / "in", train_04={"fill": 1, "size": 8}, train_09={"fill": 1, "dtype": "uint8"})
    report = convert(source, tmp_path / "out", max_bad_rate=0.1)
    reasons = {item.name.split(",")[0]: item.reason for item in report.bad_items}
    assert set(reasons) == {"train-04.json", "train-09.json"}
    assert reasons["train-04.json"] == "shape (1, 8, 4), not (1, 4, 4) as in train-00.json"


@pytest.mark.parametrize("odd", ["train_00", "train_01", "train_11", "train_06"])
def test_the_first_input_may_be_the_odd_one(tmp_path, odd):
    report = convert(many(tmp_path / "in", 12, **{odd: {"fill": 1, "size": 8}}), tmp_path / "out")
    (bad,) = report.bad_items
    assert bad.name.startswith(odd.replace("_", "-")) and "shape (1, 8, 4), not (1, 4, 4)" in bad.reason


def test_values_of_unlike_ranges_are_remarked_on(tmp_path):
    files = {f"train_{n:02d}": {"fill": 40 * n} for n in range(4)} | {"test_00": {"fill": 0}}
    (remark,) = convert(write(tmp_path / "in", **files), tmp_path / "out").remarks
    assert remark.startswith("look: test has values from 0 to 2, train from 0 to 122; if their units differ")


KEYS = ["Überflug 1", "a.b", "/a/", "k" * 200, "飛行-00003", "", "new\nline", "a", "a-0001"]


def test_any_key_is_stored_so_that_every_reader_takes_it(tmp_path):
    files = {f"train_{n:02d}": {"fill": n, "key": key} for n, key in enumerate(KEYS)}
    convert(write(tmp_path / "in", **files), tmp_path / "out")
    ours = keys(tmp_path / "out" / "train")
    assert len(set(ours)) == len(KEYS) and ours[-2:] == ["a", "a-0001"] and ours[4].endswith("-00003")
    tars = sorted(map(str, (tmp_path / "out" / "train").glob("*.tar")))
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)]
    assert theirs == ours
    names = []
    for path in tars:
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert names and all(len(name) <= 100 and name.isascii() for name in names)


def test_a_key_that_comes_twice_is_named(tmp_path):
    source = many(tmp_path / "in", train_01={"fill": 1, "key": "same"}, train_02={"fill": 2, "key": "same"})
    (bad,) = convert(source, tmp_path / "out").bad_items
    assert bad.name == "train-02.json, sample same" and "an earlier sample has its key 'same'" in bad.reason
    source = many(tmp_path / "other", train_01={"fill": 1, "key": "same"}, train_05={"fill": 2, "key": "same"})
    with pytest.raises(ValueError, match=r"key 'same' is in two shards, train-000000.tar and train-000001.tar"):
        convert(source, tmp_path / "other_out")


def test_who_is_independent_stands_in_the_manifest(tmp_path):
    report = convert(many(tmp_path / "in"), tmp_path / "out")
    assert {read_document(path, Manifest).independent for path in report.manifests.values()} == {"case"}


def test_constant_channels_divide_nothing_by_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(JsonSource, "normalisation", lambda self: ((0.0,), (255.0,)))
    source = write(tmp_path / "in", train_00={"fill": 0}, test_00={"fill": 0})
    good = JsonSource.read_item

    def dry(self, item):
        for sample in good(self, item):
            yield Sample(sample.key, np.zeros_like(sample.frames))

    monkeypatch.setattr(JsonSource, "read_item", dry)
    report = convert(source, tmp_path / "out")
    assert "all values are 0 in network units" in report.describe()[0]
    assert report.remarks == ["look: channel 0 is 0 in every sample of train"]


def test_a_repaired_input_is_converted_anew_and_no_other(tmp_path):
    source = many(tmp_path / "in", 12, train_05="{")
    first = convert(source, tmp_path / "out")
    assert len(first.bad_items) == 1 and len(keys(tmp_path / "out" / "train")) == 11
    write(tmp_path / "in", train_05={"fill": 5})
    second = convert(source, tmp_path / "out")
    assert (second.num_written, second.num_reused) == (1, 3) and second.rewritten == {"their inputs changed": 1}
    assert not second.bad_items and len(keys(tmp_path / "out" / "train")) == 12
    assert convert(source, tmp_path / "out").num_reused == 4


def test_a_source_whose_options_do_not_say_what_it_reads_keeps_inputs_apart(tmp_path, monkeypatch):
    """As latents: the same command for the shards of other frames must not replace them."""
    monkeypatch.setattr(JsonSource, "refuses_other_inputs", True)
    source = many(tmp_path / "in", 12)
    convert(source, tmp_path / "out")
    assert convert(source, tmp_path / "out").num_reused == 4
    (tmp_path / "in" / "train-00.json").unlink()
    with pytest.raises(ValueError, match="made with other options"):
        convert(source, tmp_path / "out")


def test_inputs_that_went_take_their_shards_along(tmp_path):
    source = many(tmp_path / "in", 12)
    convert(source, tmp_path / "out")
    for name in ("train-09", "train-08", "train-10", "train-11", "test-00"):
        (tmp_path / "in" / f"{name}.json").unlink()
    report = convert(source, tmp_path / "out")
    assert set(report.manifests) == {"train"} and len(keys(tmp_path / "out" / "train")) == 8
    left = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file() and ".lock" not in path.name}
    assert left == {f"train-00000{n}.{end}" for n in (0, 1) for end in ("tar", "index.json", "json")} | {
        "manifest.json"
    }


@pytest.mark.parametrize("damage", ["altered", "cut", "index", "record"])
def test_shards_that_were_damaged_are_written_anew(tmp_path, damage):
    source = many(tmp_path / "in", 12)
    convert(source, tmp_path / "out")
    train = tmp_path / "out" / "train"
    whole = {path: path.read_bytes() for path in train.rglob("*") if path.is_file()}
    path = {"index": train / "train-000001.index.json", "record": train / ".records" / "train-000001.json"}.get(
        damage, train / "train-000001.tar"
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) // 2] if damage in ("cut", "record") else data)
    report = convert(source, tmp_path / "out")
    assert report.num_reused == 3 and sum(report.rewritten.values()) == 1
    assert {path: path.read_bytes() for path in whole} == whole


def test_records_of_an_earlier_version_are_replaced(tmp_path):
    source = many(tmp_path / "in", 4)
    convert(source, tmp_path / "out")
    job = ShardJob(source, source.plan()[0], tmp_path / "out", PLAIN)
    earlier = read_document(job.record_path, ShardRecord).model_dump(mode="json")
    del earlier["inputs"], earlier["num_inputs"], earlier["num_lost_inputs"]
    for fingerprint in (job.earlier_fingerprint, "of other options"):
        job.record_path.write_text(json.dumps({**earlier, "fingerprint": fingerprint}))
        if fingerprint == job.earlier_fingerprint:
            assert convert(source, tmp_path / "out").rewritten == {"an earlier version wrote them": 1}
        else:
            with pytest.raises(ValueError, match="made with other options"):
                convert(source, tmp_path / "out")


@pytest.mark.parametrize("call", ["write", "close"])
def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path, monkeypatch, call):
    source, complaints = many(tmp_path / "in", 12), []
    good = getattr(webdataset.TarWriter, call)

    def full(self, *arguments):
        if list((tmp_path / "out" / "train").glob("train-000000.tar")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return good(self, *arguments)

    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    monkeypatch.setattr(webdataset.TarWriter, call, full)
    with pytest.raises(OSError, match="No space left") as caught:
        convert(source, tmp_path / "out")
    assert str(caught.value.filename).endswith("train-000001.tar")
    gc.collect()
    monkeypatch.undo()
    left = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file() and ".lock" not in path.name}
    assert left == {"train-000000.tar", "train-000000.index.json", "train-000000.json"} and not complaints
    assert convert(source, tmp_path / "out").num_reused == 1


class DyingSource(JsonSource):
    """As a library that crashes, or a system that is short of memory."""

    name = "dying"

    def read_item(self, item):
        if item == "train-05.json" and multiprocessing.parent_process() is not None:
            os._exit(1)
        yield from super().read_item(item)


def test_a_process_that_dies_is_one_line(tmp_path):
    source = DyingSource(many(tmp_path / "in", 12).config)
    with pytest.raises(ValueError, match="a process that wrote a shard was ended from outside, or a library crashed"):
        convert(source, tmp_path / "out", num_processes=2)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_that_is_no_share_is_refused(tmp_path, rate):
    with pytest.raises(ValueError, match=r"--max-bad-rate is .*; give a share from 0 to 1"):
        convert(many(tmp_path / "in"), tmp_path / "out", max_bad_rate=rate)


def test_no_processes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--processes is 0; give at least 1"):
        convert(many(tmp_path / "in"), tmp_path / "out", num_processes=0)


def test_a_plan_without_shards_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="source 'json_files' planned no shard"):
        convert(JsonSource(JsonConfig(root=str(tmp_path / "in"))), tmp_path / "out")


def test_a_folder_whose_name_is_no_text(tmp_path):
    root = tmp_path / os.fsdecode(b"in\xff")
    report = convert(many(root, 4), tmp_path / "out")
    assert read_document(report.manifests["train"], Manifest).details["options"]["root"].endswith("in\\udcff")


def test_an_unsealed_manifest_keeps_its_identity(tmp_path):
    """Latents and forecasts of earlier versions name shards by it."""
    report = convert(many(tmp_path / "in", 4), tmp_path / "out")
    tree = json.loads(report.manifests["train"].read_text())
    del tree["sha256"], tree["independent"]
    for name in ("frames_per_sec", "bounds", "empty_history_scale", "latitudes"):  # came after manifests were sealed
        del tree["frames"][name]
    earlier = hashlib.sha256((json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()).hexdigest()
    assert manifest_identity(Manifest.model_validate_json(json.dumps(tree))) == earlier


def test_indices_are_read_back_as_they_are_written(tmp_path):
    convert(many(tmp_path / "in", 4), tmp_path / "out")
    index = read_document(tmp_path / "out" / "train" / "train-000000.index.json", ShardIndex)
    assert index.keys == tuple(f"train-{n:02d}" for n in range(4))
