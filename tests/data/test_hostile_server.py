"""Servers and files that mean harm: no name leads out of a folder, nothing holds a reader, no secret is kept."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_proxy import HOST, python_server

from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.members import tar_members
from dydiff_dist.data.remote import PROTOCOLS, RemoteConfig, RemoteStore, from_elsewhere
from dydiff_dist.data.remote_cache import TAG_NAME, ShardCache
from dydiff_dist.data.remote_files import FsspecFiles, HttpFiles, NetworkError
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet
from dydiff_dist.data.stores import LocalStore
from dydiff_dist.errors import run_command
from dydiff_dist.files import plain_name, seal
from dydiff_dist.quoting import CredentialFilter, shortened, without_credentials

QUICK = {"timeout_sec": 5.0, "back_off_sec": 0.01, "attempts": 2}
IMPATIENT = {**QUICK, "timeout_sec": 0.3}
SLOW_TO_JUDGE = {"timeout_sec": 1.5, "attempts": 1}
"""A loaded machine may send nothing for a moment, which is to be told from a rate that is low."""

HOSTILE_NAMES = [
    "../../../x.tar",
    "OUTSIDE/x.tar",
    "a/b.tar",
    "a\\b.tar",
    "..",
    ".hidden.tar",
    "",
    "x\0.tar",
    "x\n.tar",
    "x" * 300,
]


def forge(path: Path, change: Callable[[dict], None]) -> None:
    """Changes a document and seals it again."""
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(seal(tree)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def raw_server(answer: Callable[[str, str, socket.socket], None]) -> Iterator[str]:
    """URL of a server whose ``answer(method, path, client)`` writes what it likes, and the connection closes."""

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            method, path = client.recv(65536).decode("latin-1").split()[:2]
            answer(method, path, client)

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://{HOST}:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("kind", ["frames", "latents"])
@pytest.mark.parametrize("place", ["local", "remote"])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_in_a_manifest_leads_out_of_its_folder(make_shards, tmp_path, name, place, kind):
    folder = make_shards(counts=(2,))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.tar").write_text("somebody's")

    def change(tree: dict) -> None:
        tree["shards"][0]["name"] = name.replace("OUTSIDE", str(tmp_path / "outside"))
        if kind == "latents":
            frames = tree["frames"]
            tree["latents"] = {"autoencoder_sha256": "a", "source_frames": frames, "source_sha256": "b"}

    forge(folder / "manifest.json", change)
    before = contents(tmp_path)
    with python_server(folder) as (host, port):
        remote = RemoteConfig(cache_dir=str(tmp_path / "cache"), **QUICK)
        url = folder if place == "local" else f"http://{host}:{port}"
        with pytest.raises(ValueError, match=r"manifest.json: shards.0.name: name .* is no plain file name") as caught:
            ShardSet.open(url, check="none", remote=remote)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert {name: data for name, data in contents(tmp_path).items() if not name.startswith("cache/")} == before
    assert [path.name for path in (tmp_path / "cache").rglob("*")] in ([], [TAG_NAME])


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_path_is_formed_of_such_a_name_either(tmp_path, name):
    """A second wall, should a document not be checked."""
    local = LocalStore(tmp_path)
    remote = RemoteStore("http://127.0.0.1:9/shards", RemoteConfig(cache_dir=str(tmp_path / "cache"), **QUICK))
    cache = ShardCache(tmp_path / "cache", 100, "http://host", remote)
    slow = HttpFiles("http://127.0.0.1:9", 0.1, 0), FsspecFiles("memory://shards", 0.1, 0)
    for action in (
        *(local.size, local.read, lambda name: local.read_range(name, 0, 1)),
        *(remote.size, lambda name: remote.read_range(name, 0, 1), remote.forget, cache.open, cache.forget),
        *(files.size for files in slow),
    ):
        with pytest.raises(ValueError, match="is no plain file name"):
            action(name)
    with pytest.raises(ValueError, match="is no plain file name"):
        plain_name(name)


def test_a_cache_takes_no_folder_that_holds_other_things(make_shards, tmp_path):
    folder = make_shards(counts=(2,))
    with python_server(folder) as (host, port):
        url, mine = f"http://{host}:{port}", tmp_path / "mine"
        mine.mkdir()
        (mine / "train-000000.tar").write_text("the user's, with another checksum")
        before = contents(mine)
        with pytest.raises(ValueError, match=r"data.remote.cache_dir .*mine holds other things than cached shards"):
            ShardSet.open(url, remote=RemoteConfig(cache_dir=str(mine), **QUICK))
        assert contents(mine) == before
        shards = ShardSet.open(url, remote=RemoteConfig(cache_dir=str(tmp_path / "cache"), **QUICK))
        shards.read(shards.address(0))
        (kept,) = (tmp_path / "cache").glob("*/*.tar")
        kept.write_bytes(bytes(kept.stat().st_size))  # its own, and damaged: fetched anew
        shards.read(shards.address(0))
        assert kept.read_bytes() == (folder / "train-000000.tar").read_bytes()
        old = tmp_path / "cache" / TAG_NAME
        old.unlink()  # as an earlier version left it
        ShardSet.open(url, remote=RemoteConfig(cache_dir=str(tmp_path / "cache"), **QUICK))
        assert old.is_file()


def test_settings_from_elsewhere_make_no_cache(tmp_path):
    remote = RemoteConfig(cache_dir=str(tmp_path / "new"), attempts=3)
    assert from_elsewhere(remote) == RemoteConfig(attempts=3) and not (tmp_path / "new").exists()
    RemoteStore("http://host/shards", remote)
    assert from_elsewhere(remote) == remote


def test_a_shard_beyond_the_cache_is_not_downloaded(make_shards, tmp_path):
    with python_server(make_shards(counts=(2,))) as (host, port):
        remote = RemoteConfig(cache_dir=str(tmp_path / "cache"), cache_max_bytes=100, **QUICK)
        shards = ShardSet.open(f"http://{host}:{port}", remote=remote)
        with pytest.raises(DamagedSampleError, match=r"it has \d+ bytes, data.remote.cache_max_bytes is 100; raise it"):
            shards.read(shards.address(0))


SECRET_URLS = [
    "simplecache::http://user:pass-word@host/shards",
    "zip://x.zip::s3://user:pass-word@host/shards",
    "http://user:pass-word@host/shards",
    "HTTP://user:pass-word@host/shards",
    "http://user:pass/-word@host/shards",
    "s3://key:pass-word@bucket/shards",
    "https://host/shards?X-Amz-Signature=pass-word",
    "https://host/shards#token=pass-word",
    "nosuch://user:pass-word@host/shards",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_credentials_are_refused_and_nowhere_repeated(url, capsys):
    with pytest.raises(ValueError, match=r"chains protocols|credentials|unknown protocol") as caught:
        ShardSet.open(url)
    assert "-word" not in str(caught.value) and "***" in str(caught.value)
    with pytest.raises(ValueError) as caught:
        DataConfig(train=url)

    def fail() -> None:
        raise ValueError(f"{url} can't be read")

    with pytest.raises(SystemExit):
        run_command(fail)
    record = logging.LogRecord("any", logging.WARNING, "file", 1, "%s: try 2", (url,), None)
    CredentialFilter().filter(record)
    for text in (capsys.readouterr().err, record.getMessage(), without_credentials(url), shortened(url)):
        assert "-word" not in text and "***" in text


@pytest.mark.parametrize("url", ["file:///etc", "reference://x", "simplecache://x", "github://a:b/x", "data://x"])
def test_protocols_that_are_no_store_are_refused(url):
    with pytest.raises(
        ValueError, match=r"unknown protocol; shards are read from http, https, s3|credentials"
    ) as caught:
        RemoteStore(url, RemoteConfig())
    assert "\n" not in str(caught.value)
    assert {"http", "https", "s3", "gs", "az", "abfs", "hdfs", "sftp"} <= set(PROTOCOLS)


@pytest.mark.parametrize(
    "text", ["s3://bucket/a@b/c", "http://host:8080/x@y", "see http://host/x? It is", "a@b.c: d#e"]
)
def test_what_is_no_credential_is_left(text):
    assert without_credentials(text) == text


HEAD_OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"


def _stall(client: socket.socket) -> None:
    time.sleep(2)


def _trickle(client: socket.socket) -> None:
    for _ in range(2000):
        client.sendall(b"X")
        time.sleep(0.02)


def _endless_head(client: socket.socket) -> None:
    for _ in range(10**6):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda client: client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n"), "the server answered 403$"),
        (lambda client: client.sendall(b"HTTP/1.1 500 Oh\r\n\r\n"), "the server answered 500, 2 times in a row$"),
        (lambda client: client.sendall(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"), "answered 302"),
        (
            lambda client: client.sendall(b"HTTP/1.1 302 Found\r\nLocation: ftp://host/x\r\n\r\n"),
            "unknown url type: ftp",
        ),
        (lambda client: client.sendall(HEAD_OK % 10**13), "10000000000000 bytes, too many for a document"),
        (lambda client: client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"), "does not say how large"),
        (lambda client: client.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), "does not say how large"),
        (lambda client: client.sendall(b"x" * 7316 + b"\r\n\r\n"), "x{100}.*, 2 times in a row$"),
        (lambda client: None, "2 times in a row$"),
        (_endless_head, "the server sends more than it was asked for, 2 times in a row$"),
    ],
    ids="403 500 to-file to-ftp huge negative no-size garbage nothing head".split(),
)
def test_a_server_that_fails_at_the_start_is_one_line(answer, reason):
    with raw_server(lambda method, path, client: answer(client)) as url:
        start = time.monotonic()
        with pytest.raises(ValueError, match=rf"{url}/manifest.json cannot be read: .*{reason}") as caught:
            ShardSet.open(url, remote=RemoteConfig(**QUICK))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("answer", "settings", "reason"),
    [
        (_stall, IMPATIENT, "timed out, 2 times in a row$"),
        (_trickle, SLOW_TO_JUDGE, r"only \d+ bytes came in .* s, below data.remote.min_bytes_per_sec 10000, 1 times"),
    ],
    ids=["stall", "trickle"],
)
def test_a_server_that_is_too_slow_at_the_start_is_one_line(answer, settings, reason):
    with (
        raw_server(lambda method, path, client: answer(client)) as url,
        pytest.raises(ValueError, match=rf"{url}/manifest.json cannot be read: {reason}"),
    ):
        ShardSet.open(url, remote=RemoteConfig(**settings))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda client: client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n"), "the server answered 403"),
        (lambda client: client.sendall(b"HTTP/1.1 500 Oh\r\n\r\n"), "the server answered 500, 2 times in a row"),
        (_stall, "timed out, 2 times in a row"),
    ],
    ids=["403", "500", "stall"],
)
def test_a_shard_that_the_server_will_not_give_at_the_start_is_one_line(make_shards, answer, reason):
    manifest = (make_shards(counts=(2,)) / "manifest.json").read_bytes()

    def serve(method: str, path: str, client: socket.socket) -> None:
        if "manifest" in path:
            client.sendall(HEAD_OK % len(manifest) + (b"" if method == "HEAD" else manifest))
        else:
            answer(client)

    with (
        raw_server(serve) as url,
        pytest.raises(ValueError, match=f"shard {url}/train-000000.tar cannot be read: {reason}"),
    ):
        ShardSet.open(url, remote=RemoteConfig(**(IMPATIENT if answer is _stall else QUICK)))


@pytest.mark.parametrize("gap_sec", [0.02, 0.0], ids=["drop by drop", "a byte a connection"])
def test_a_server_that_sends_a_byte_at_a_time_is_given_up(gap_sec):
    """Bytes arrive in every try, but so few that it would take days."""

    def serve(method: str, path: str, client: socket.socket) -> None:
        client.sendall(HEAD_OK.replace(b"200 OK", b"206 Partial") % 100_000)
        for _ in range(2000 if gap_sec else 1):
            client.sendall(b"X")
            time.sleep(gap_sec)

    reason = "below data.remote.min_bytes_per_sec 10000" if gap_sec else "the connection ended early|IncompleteRead"
    with raw_server(serve) as url:
        store = RemoteStore(url, RemoteConfig(**(SLOW_TO_JUDGE if gap_sec else QUICK)))
        with pytest.raises(OSError, match=f"({reason}).*, {1 if gap_sec else 2} times in a row"):
            store.read_range("train-000000.tar", 0, 100_000)


def test_a_chunked_body_may_not_go_on_for_ever():
    def serve(method: str, path: str, client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 206 Partial\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        for _ in range(10**6):
            client.sendall(b"A: b\r\n" * 1000)

    with raw_server(serve) as url, pytest.raises(OSError, match="more than it was asked for"):
        RemoteStore(url, RemoteConfig(**QUICK)).read_range("train-000000.tar", 0, 1000)


def test_a_store_of_fsspec_that_hangs_is_given_up(monkeypatch):
    files = FsspecFiles("memory://shards", timeout_sec=0.2, min_bytes_per_sec=10_000)
    monkeypatch.setattr(files.system, "cat_file", lambda *_, **__: time.sleep(5), raising=False)
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"no answer in 0.3 s for 1000 bytes"):
        next(files.pieces("train-000000.tar", 0, 1000))
    assert time.monotonic() - start < 4


def _header(size: bytes, name: bytes = b"key.frames.npy") -> bytes:
    block = bytearray(512)
    block[: len(name)], block[124 : 124 + len(size)] = name, size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"\xff" * 11 + b"\0", b"\x80" + b"\xff" * 11, b"77777777777", b"0000000777 "], ids=range(5)
)
def test_a_tar_header_with_a_senseless_size_ends_the_reading(size):
    """tarfile goes backwards at a negative one, and round and round."""
    with pytest.raises(ValueError, match=r"a header claims -?\d+ bytes, 300 follow"):
        tar_members(_header(size) + bytes(300), "key")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tree: tree["shards"][0].update(num_samples=10**12), "num_samples is 2, the shards list 1000000000000"),
        (lambda tree: tree["shards"][0].update(bytes=10**30), "shards.0.bytes"),
        (lambda tree: tree["frames"].update(num_frames=10**13), "frames.num_frames"),
        (lambda tree: tree["frames"].update(shape=[2, 10**6, 10**6]), "bytes can't hold 2 samples of"),
        (lambda tree: tree["frames"].update(shape=[0, -1, 3]), "frames.shape.0"),
        (
            lambda tree: (tree.update(num_samples=10**12), tree["shards"][0].update(num_samples=10**12)),
            r"shard train-000000.tar of \d+ bytes can't hold 1000000000000 samples",
        ),
    ],
    ids=["count", "bytes", "frames", "shape", "no shape", "counts"],
)
def test_sizes_of_a_manifest_are_bounded_before_memory_is_reserved(make_shards, change, reason):
    folder = make_shards(counts=(2,))
    forge(folder / "manifest.json", change)
    with pytest.raises(ValueError, match=reason) as caught:
        ShardSet.open(folder, check="none")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_an_index_may_not_reach_beyond_its_shard(make_shards):
    folder = make_shards(counts=(2,))
    shards = ShardSet.open(folder)
    index, entry = shards.index(0), shards.manifest.shards[0]
    for change in ({"sizes": (10**13, 5)}, {"offsets": (10**13, 5)}, {"keys": ("a",)}, {"crc32": ()}):
        with pytest.raises(ValueError, match=r"index lists (samples beyond the \d+ bytes|\d+ samples, the manifest 2)"):
            index.model_copy(update=change).check_fits(entry, "index")
