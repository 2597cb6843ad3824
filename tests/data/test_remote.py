"""Shards behind a web server that breaks in every way, and in an object store."""

import logging
import os

import fsspec
import numpy as np
import pytest
from faulty_proxy import faulty_proxy, nginx, python_server
from numbered_source import numbered_sample
from test_stream import assert_same_batches, config, global_batches

from dydiff_dist.data import remote_files
from dydiff_dist.data.remote import RemoteConfig, RemoteStore
from dydiff_dist.data.remote_cache import ShardCache
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet

QUICK = {"timeout_sec": 0.3, "back_off_sec": 0.01}


@pytest.fixture
def folder(make_shards):
    return make_shards(counts=(4, 3), num_actions=1)


@pytest.fixture(params=["python", "nginx"])
def server(request, folder, tmp_path):
    """A proxy that can break what a web server answers."""
    upstream = nginx(folder, tmp_path / "nginx") if request.param == "nginx" else python_server(folder)
    with upstream as address, faulty_proxy(address) as proxy:
        yield proxy


def assert_all_right(shards):
    for number in range(7):
        assert np.array_equal(shards.read(shards.address(number)).frames, numbered_sample(number, 5).frames)


def test_samples_are_read_by_ranges(server):
    shards = ShardSet.open(server.url, remote=RemoteConfig(**QUICK))
    server.requests.clear()
    shards.read(shards.address(2))
    offset = shards.index(0).offsets[2]
    assert server.requests == [("train-000000.index.json", 0), ("train-000000.tar", offset)]
    assert_all_right(shards)


@pytest.mark.parametrize("fault", ["drop", "short", "stall", "503", "alter"])
@pytest.mark.parametrize("cached", [False, True])
def test_every_fault_is_survived(server, tmp_path, fault, cached):
    cache = {"cache_dir": str(tmp_path / "cache")} if cached else {}
    shards = ShardSet.open(server.url, remote=RemoteConfig(**QUICK, **cache))
    shards.index(0), shards.index(1)
    server.faults += [fault, fault] if fault != "alter" else [fault]
    assert_all_right(shards)
    assert not server.faults


def test_a_broken_download_is_taken_up_where_it_broke(server, tmp_path):
    remote = RemoteConfig(cache_dir=str(tmp_path / "cache"), **QUICK)
    shards = ShardSet.open(server.url, remote=remote)
    shards.index(0)
    server.requests.clear()
    server.faults += ["short", "short"]
    shards.read(shards.address(0))
    starts = [first for name, first in server.requests if name == "train-000000.tar"]
    assert starts[0] == 0 and len(starts) == 3 and 0 < starts[1] < starts[2]
    server.requests.clear()
    assert_all_right(ShardSet.open(server.url, remote=remote))
    assert not [name for name, _ in server.requests if name == "train-000000.tar"]


def test_the_cache_stays_below_its_size(server, tmp_path):
    sizes = [entry.bytes for entry in ShardSet.open(server.url).manifest.shards]
    remote = RemoteConfig(cache_dir=str(tmp_path / "cache"), cache_max_bytes=max(sizes), **QUICK)
    shards = ShardSet.open(server.url, remote=remote)
    for _ in range(2):
        assert_all_right(shards)
        assert [path.name for path in (tmp_path / "cache").glob("*/*.tar")] == ["train-000001.tar"]


class OneFile:
    """Where a cache fetches from."""

    def __init__(self, data):
        self.data, self.num_fetches = data, 0

    def size(self, name):
        return len(self.data)

    def pieces(self, name, offset, size):
        self.num_fetches += 1
        yield self.data[offset : offset + size]


def test_a_part_that_is_longer_than_its_shard_is_begun_anew(tmp_path):
    cache = ShardCache(tmp_path, 100, "http://host", OneFile(b"0123456789"))
    cache.own_folder.mkdir()
    (cache.own_folder / ".a.tar.part").write_bytes(b"of a longer shard")
    with cache.open("a.tar") as file:
        assert file.read() == b"0123456789"


def test_a_shard_that_is_dropped_as_soon_as_it_is_there_is_fetched_again(tmp_path, monkeypatch):
    """As by another process that needs the room for its own shard."""
    origin, utime, drops = OneFile(b"0123456789"), os.utime, [1, 1]

    def utime_and_drop(path):
        utime(path)
        if drops:
            drops.pop()
            path.unlink()

    monkeypatch.setattr(os, "utime", utime_and_drop)
    with ShardCache(tmp_path, 100, "http://host", origin).open("a.tar") as file:
        assert file.read() == b"0123456789"
    assert origin.num_fetches == 3


def test_a_store_that_brings_less_than_was_asked_for_leaves_no_gap(monkeypatch):
    memory, data = fsspec.filesystem("memory"), bytes(range(200))
    memory.pipe("/short/a.tar", data)
    monkeypatch.setattr(remote_files, "FSSPEC_PIECE_BYTES", 64)
    store, whole, lengths = RemoteStore("memory://short", RemoteConfig(**QUICK)), memory.cat_file, iter([64, 30, 0])
    monkeypatch.setattr(
        store.files.system, "cat_file", lambda path, **span: whole(path, **span)[: next(lengths, None)], raising=False
    )
    assert store.read_range("a.tar", 0, 200) == data and next(lengths, None) is None
    memory.rm("/short", recursive=True)


def test_a_dead_server_is_named_and_does_not_hang(server, caplog):
    shards = ShardSet.open(server.url, remote=RemoteConfig(attempts=3, **QUICK))
    shards.index(0)
    server.faults += ["503"] * 100
    with caplog.at_level(logging.WARNING), pytest.raises(DamagedSampleError) as caught:
        shards.read(shards.address(0))
    assert "sample-0000" in str(caught.value) and "the server answered 503, 3 times in a row" in str(caught.value)
    assert any("try 2 in" in record.message for record in caplog.records)


def test_missing_and_truncated_shards_are_refused(server, folder):
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json; is the URL that of a folder of shards"):
        ShardSet.open(server.url + "/nothing", remote=RemoteConfig(**QUICK))
    path = folder / "train-000001.tar"
    os.truncate(path, 3000)
    with pytest.raises(ValueError, match=r"train-000001.tar is truncated: 3000 bytes"):
        ShardSet.open(server.url, remote=RemoteConfig(**QUICK))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000001.tar is missing"):
        ShardSet.open(server.url, remote=RemoteConfig(**QUICK))


def test_training_from_a_server_gives_the_batches_of_the_folder(server, folder, tmp_path):
    expected = global_batches(ShardSet.open(folder), config(), 1, 4)
    remote = RemoteConfig(cache_dir=str(tmp_path / "cache"), **QUICK)
    assert_same_batches(global_batches(ShardSet.open(server.url, remote=remote), config(num_workers=2), 2, 4), expected)


@pytest.mark.parametrize("url", ["http://user:secret@host/shards", "https://host/shards?X-Amz-Signature=secret"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="credentials") as caught:
        RemoteStore(url, RemoteConfig())
    assert "secret" not in str(caught.value)


def test_any_store_of_fsspec(folder):
    memory = fsspec.filesystem("memory")
    for path in [*folder.glob("*.tar"), *folder.glob("*.json")]:
        memory.pipe(f"/shards/{path.name}", path.read_bytes())
    assert_all_right(ShardSet.open("memory://shards"))
    memory.rm("/shards", recursive=True)


@pytest.fixture
def bucket(folder, s3):
    """(URL, proxy) of shards on an S3 server behind a proxy."""
    store, proxy = s3
    for path in [*folder.glob("*.tar"), *folder.glob("*.json")]:
        store.pipe_file(f"bucket/shards/{path.name}", path.read_bytes())
    return "s3://bucket/shards", proxy


@pytest.mark.slow
def test_an_s3_server_that_breaks(bucket, tmp_path, caplog):
    url, proxy = bucket
    shards = ShardSet.open(url, remote=RemoteConfig(**QUICK))
    shards.index(0), shards.index(1)
    for fault in ("503", "drop", "short"):
        proxy.faults += [fault, fault]
        assert_all_right(shards)
        assert not proxy.faults
    cached = ShardSet.open(url, remote=RemoteConfig(cache_dir=str(tmp_path / "cache"), **QUICK))
    proxy.faults += ["drop"]
    assert_all_right(cached)
    proxy.requests.clear()
    assert_all_right(cached)
    assert not proxy.requests and "secret-of-the-store" not in caplog.text


@pytest.mark.slow
def test_an_s3_bucket_that_is_not_there_is_one_line(bucket):
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/nothing has no manifest.json") as caught:
        ShardSet.open("s3://bucket/nothing", remote=RemoteConfig(**QUICK))
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
