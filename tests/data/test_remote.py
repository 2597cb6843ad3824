"""Shards behind a web server that breaks in every way, and in an object store."""

import logging
import os

import fsspec
import numpy as np
import pytest
from flaky_server import serve
from numbered_source import numbered_sample
from test_stream import assert_same_batches, config, global_batches

from dydiff_dist.data.remote import RemoteConfig, RemoteStore
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet

QUICK = {"timeout_sec": 0.3, "back_off_sec": 0.01}


@pytest.fixture
def server(make_shards):
    folder = make_shards(counts=(4, 3), num_actions=1)
    with serve(folder) as running:
        yield running


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


def test_a_dead_server_is_named_and_does_not_hang(server, caplog):
    shards = ShardSet.open(server.url, remote=RemoteConfig(attempts=3, **QUICK))
    shards.index(0)
    server.faults += ["503"] * 100
    with caplog.at_level(logging.WARNING), pytest.raises(DamagedSampleError) as caught:
        shards.read(shards.address(0))
    assert "sample-0000" in str(caught.value) and "the server answered 503, 3 times in a row" in str(caught.value)
    assert any("try 2 in" in record.message for record in caplog.records)


def test_missing_and_truncated_shards_are_refused(server):
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json; is the URL that of a folder of shards"):
        ShardSet.open(server.url + "/nothing", remote=RemoteConfig(**QUICK))
    path = server.folder / "train-000001.tar"
    os.truncate(path, 3000)
    with pytest.raises(ValueError, match=r"train-000001.tar is truncated: 3000 bytes"):
        ShardSet.open(server.url, remote=RemoteConfig(**QUICK))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000001.tar is missing"):
        ShardSet.open(server.url, remote=RemoteConfig(**QUICK))


def test_training_from_a_server_gives_the_batches_of_the_folder(server, tmp_path):
    expected = global_batches(ShardSet.open(server.folder), config(), 1, 4)
    remote = RemoteConfig(cache_dir=str(tmp_path / "cache"), **QUICK)
    assert_same_batches(global_batches(ShardSet.open(server.url, remote=remote), config(num_workers=2), 2, 4), expected)


@pytest.mark.parametrize("url", ["http://user:secret@host/shards", "https://host/shards?X-Amz-Signature=secret"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="credentials") as caught:
        RemoteStore(url, RemoteConfig())
    assert "secret" not in str(caught.value)


def test_any_store_of_fsspec(make_shards):
    folder = make_shards(counts=(4, 3), num_actions=1)
    memory = fsspec.filesystem("memory")
    for path in [*folder.glob("*.tar"), *folder.glob("*.json")]:
        memory.pipe(f"/shards/{path.name}", path.read_bytes())
    assert_all_right(ShardSet.open("memory://shards"))
    memory.rm("/shards", recursive=True)


def test_an_s3_server(make_shards, monkeypatch):
    pytest.importorskip("s3fs", reason="S3 needs s3fs: pip install s3fs")
    moto = pytest.importorskip("moto.server", reason="the S3 server of the tests is moto: pip install moto[server]")
    folder = make_shards(counts=(4, 3), num_actions=1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    try:
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        store = fsspec.filesystem("s3", endpoint_url=f"http://{host}:{port}", skip_instance_cache=True)
        store.mkdir("bucket")
        for path in [*folder.glob("*.tar"), *folder.glob("*.json")]:
            store.put_file(str(path), f"bucket/shards/{path.name}")
        assert_all_right(ShardSet.open("s3://bucket/shards"))
    finally:
        running.stop()
