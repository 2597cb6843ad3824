"""Files appear whole or not at all."""

import hashlib
import json
import multiprocessing

import pytest

from dydiff_dist.files import (
    SEAL,
    atomic_file,
    file_sha256,
    parse_json,
    parse_sealed,
    plain_name,
    read_at,
    read_document_bytes,
    remove_partials,
    seal,
    write_bytes,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "scores.csv"
    write_text(path, "old\n")
    with atomic_file(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old\n"
        assert partial.parent == tmp_path and partial.name.startswith(".scores.csv.") and partial.suffix == ".partial"
        partial.write_text("new\n")
    assert path.read_text() == "new\n" and names(tmp_path) == ["scores.csv"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "scores.csv"
    write_text(path, "old\n")
    with pytest.raises(error), atomic_file(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old\n" and names(tmp_path) == ["scores.csv"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "scores.csv"):
        pass
    assert names(tmp_path) == []


def _write_often(path, letter):
    for _ in range(50):
        write_bytes(path, letter * 100_000)


def test_processes_that_write_the_same_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "shared"
    _write_often(path, b"a")
    writers = [multiprocessing.Process(target=_write_often, args=(path, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        data = path.read_bytes()
        assert len(data) == 100_000 and len(set(data)) == 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["shared"]


def test_what_a_killed_writer_left_can_be_removed(tmp_path):
    path = tmp_path / "a[1].json"
    for name in (".a[1].json.0123abcd.partial", ".a1.json.0123abcd.partial"):
        (tmp_path / name).write_text("half")
    write_json(path, {})
    remove_partials(path)
    assert names(tmp_path) == [".a1.json.0123abcd.partial", "a[1].json"]


def test_json_and_hash(tmp_path):
    path = tmp_path / "facts.json"
    write_json(path, {"a": [1, "ä"]}, indent=None)
    assert json.loads(path.read_text()) == {"a": [1, "ä"]}
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"), allow_nan=False)


def test_a_seal_notices_every_change_but_of_layout(caplog):
    sealed = seal({"a": [1, 2.5, "ä"], "b": {"c": None}})
    assert parse_sealed(json.dumps(sealed, indent=7, sort_keys=True).encode(), "x.json", "redo") == {
        "a": [1, 2.5, "ä"],
        "b": {"c": None},
    }
    for change in ({"a": [1, 2.5, "a"]}, {"b": {}}, {"more": 1}, {SEAL: "0" * 64}, {SEAL: 5}):
        with pytest.raises(ValueError, match=r"x.json was altered: its checksum does not fit .*, or redo"):
            parse_sealed(json.dumps(sealed | change).encode(), "x.json", "redo")
    assert not caplog.records
    for _ in range(3):
        assert parse_sealed(b'{"a": 1}', "old.json", "redo") == {"a": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "old.json has no checksum, so a changed value in it goes unnoticed; redo"
    ]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000 + b"]" * 100_000, b"1" * 10_000, b"x" * 7316, b'{"a": 1} {"a": 1}'],
    ids=["nothing", "half", "bytes", "deep", "number", "text", "twice"],
)
def test_what_is_no_json_is_one_short_line(data):
    for parse in (parse_json, parse_sealed):
        with pytest.raises(ValueError, match=r"^x.json is damaged \(.*\); redo$") as caught:
            parse(data, "x.json", "redo")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(ValueError, match="no JSON object"):
        parse_sealed(b"[1]", "x.json", "redo")


@pytest.mark.parametrize("name", ["train-000000.tar", "a b.json", "ä.tar", "a..b", "x" * 255])
def test_plain_names(name):
    assert plain_name(name) == name


def test_no_more_is_read_than_there_is(tmp_path, monkeypatch):
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    with open(path, "rb", buffering=0) as file:
        assert read_at(file, 2, 3) == b"234" and read_at(file, 8, 10**13) == b"89" and read_at(file, 20, 10**13) == b""
    monkeypatch.setattr("dydiff_dist.files.MAX_DOCUMENT_BYTES", 9)
    with pytest.raises(ValueError, match="data has more than 9 bytes, too many for a document"):
        read_document_bytes(path)
