"""Shards of numbered samples for the tests of this part."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from faulty_proxy import FaultyProxy, faulty_proxy
from numbered_source import NumberedSource, NumberedSourceConfig

from dydiff_dist.data.convert import convert


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Writes numbered shards and returns the training folder."""

    def make(name: str = "shards", **options: object) -> Path:
        convert(NumberedSource(NumberedSourceConfig(**options)), tmp_path / name)
        return tmp_path / name / "train"

    return make


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[fsspec.AbstractFileSystem, FaultyProxy]]:
    """moto's S3 server with an empty bucket ``bucket``: a store that reaches it directly, and the proxy behind which
    whatever else opens s3:// finds it, by the environment of the store's own package."""
    pytest.importorskip("s3fs", reason="S3 needs s3fs: pip install 'dydiff_dist[s3]'")
    moto = pytest.importorskip(
        "moto.server", reason="the S3 server of the tests is moto: pip install 'dydiff_dist[dev]'"
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-store")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    store = fsspec.filesystem("s3", endpoint_url=f"http://{host}:{port}", skip_instance_cache=True)
    store.makedirs("bucket", exist_ok=True)
    with faulty_proxy((host, port)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        type(store).clear_instance_cache()
        yield store, proxy
    running.stop()
