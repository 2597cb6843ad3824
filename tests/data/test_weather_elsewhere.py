"""Weather from servers that are silent, or fall silent, and from an S3 server."""

import contextlib
import functools
import socket
import threading
import time

import numpy as np
import pytest
from faulty_proxy import faulty_proxy, python_server
from test_weather import chunked, era5, samples, source, xarray

from dydiff_dist.data.convert import convert
from dydiff_dist.data.remote import RemoteConfig
from dydiff_dist.data.sources import weather_files
from dydiff_dist.errors import user_message

pytest.importorskip("aiohttp", reason="http needs aiohttp")


SHORT = RemoteConfig(timeout_sec=0.5, min_bytes_per_sec=weather_files.METADATA_BYTES)
"""Half a second of silence, and a second more for all that a store's metadata may bring."""


@pytest.fixture
def short_limits(monkeypatch):
    monkeypatch.setattr(weather_files, "LIMITS", SHORT)


@pytest.fixture
def silent_server():
    """URL of a server that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as taken:

        def accept():
            with contextlib.suppress(OSError):  # the listener was closed
                while True:
                    taken.enter_context(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("name", ["era5.zarr", "era5.nc"])
def test_a_server_that_never_answers_does_not_hold_a_conversion(silent_server, short_limits, name):
    before = time.monotonic()
    with pytest.raises(ValueError, match=r"nothing else holds a variable '2m_temperature'") as caught:
        source(f"{silent_server}/{name}").plan()
    assert time.monotonic() - before < 30
    line = user_message(caught.value)
    assert f"{silent_server}/{name}: " in line and "\n" not in line


def test_a_server_that_falls_silent_costs_the_windows_that_it_owes(tmp_path, monkeypatch):
    data = era5(num_times=8)
    data.to_zarr(tmp_path / "era5.zarr", encoding=chunked(data), zarr_format=2)
    here = samples(tmp_path / "here", source(tmp_path / "era5.zarr"))
    with python_server(tmp_path) as address, faulty_proxy(address) as proxy:
        proxy.stall_sec = 5.0
        made = source(f"{proxy.url}/era5.zarr")
        tasks = made.plan()
        proxy.faults += ["stall"] * 1000
        with (
            monkeypatch.context() as patched,
            pytest.raises(ValueError, match=r"of 2 inputs are bad, .* the first is window"),
        ):
            patched.setattr(weather_files, "LIMITS", SHORT)
            convert(made, tmp_path / "out", max_bad_rate=0.0, tasks=tasks)
        proxy.faults.clear()
        found = samples(tmp_path / "out", source(f"{proxy.url}/era5.zarr"))
    assert found.keys() == here.keys() and all(np.array_equal(found[key], here[key]) for key in here)


def test_a_package_without_limits_is_left_behind(monkeypatch, short_limits):
    monkeypatch.setattr(xarray, "open_dataset", lambda *_, **__: time.sleep(4))
    with pytest.raises(ValueError, match=r"memory://weather/era5.zarr: no answer in 1.5 s for 1048576 bytes; nothing"):
        source("memory://weather/era5.zarr").plan()


@pytest.fixture
def bucket(tmp_path, s3):
    """(URL, proxy) of an S3 bucket that holds era5.zarr and era5.nc, which lie in tmp_path too."""
    store, proxy = s3
    era5().to_zarr(tmp_path / "era5.zarr", zarr_format=2)
    era5().to_netcdf(tmp_path / "era5.nc", engine="h5netcdf")
    store.put(str(tmp_path / "era5.zarr"), "bucket/era5.zarr", recursive=True)
    store.put(str(tmp_path / "era5.nc"), "bucket/era5.nc")
    return "s3://bucket", proxy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["era5.zarr", "era5.nc"])
def test_an_s3_bucket_gives_what_the_folder_gives(bucket, tmp_path, name):
    url, proxy = bucket
    here = samples(tmp_path / "here", source(tmp_path / name))
    made = functools.partial(source, f"{url}/{name}")
    proxy.faults += ["503", "drop"]
    found = samples(tmp_path / "out", made())
    assert not proxy.faults
    assert found.keys() == here.keys() and all(np.array_equal(found[key], here[key]) for key in here)
    assert convert(made(), tmp_path / "out").num_reused == 1
