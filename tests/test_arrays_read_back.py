"""npy, npz and safetensors files: their own sizes are believed no further than they are long."""

import io
import json
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from dydiff_dist.arrays import parse_npy, read_npz, read_safetensors


def npy(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def with_header(text: str, data: bytes = bytes(24), version: bytes = b"\1\0") -> bytes:
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version == b"\1\0" else 4, "little") + header + data


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.float32(3.5) * np.ones(()),
        np.array("a key"),
        np.zeros((0, 4), np.uint8),
        np.array([True, False]),
    ],
    ids=["float", "fortran", "scalar", "text", "empty", "bool"],
)
def test_arrays_come_back_as_numpy_reads_them(array, tmp_path):
    for found in (parse_npy(npy(array)), parse_npy(memoryview(npy(array)))):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype and found.shape == array.shape
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", a=array, b=array)
        found = read_npz(tmp_path / "a.npz")
        assert list(found) == ["a", "b"] and list(read_npz(tmp_path / "a.npz", only="b")) == ["b"]
        np.testing.assert_array_equal(found["a"], array)
    long = with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", version=b"\2\0")
    np.testing.assert_array_equal(parse_npy(long), np.zeros(3))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged npy header"),
        (b"\x93NUMPY", "damaged npy header"),
        (npy(np.zeros(3))[:-1], "float64 (3,), 23 bytes of data follow"),
        (npy(np.zeros(3)) + b"x", "float64 (3,), 25 bytes of data follow"),
        (npy(np.array([{}]), allow_pickle=True), "Object arrays cannot be loaded"),
        (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (10**15,), }"), "damaged npy header"),
        (
            with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"),
            "24 bytes of data follow",
        ),
        (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", b""), "0 bytes"),
        (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-3, -1), }"), "(-3, -1), 24 bytes"),
        (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (3,)"), "damaged npy header"),
        (with_header("(" * 60), "damaged npy header"),
        (
            with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", version=b"\7\0"),
            "damaged npy header",
        ),
    ],
)
def test_headers_that_lie_are_refused_before_memory_is_reserved(data, reason):
    with pytest.raises(ValueError) as caught:
        parse_npy(data)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_flipped_length_of_the_header_is_seen_by_the_checksum(tmp_path):
    """np.load reads the array from another place and never comes to the CRC-32."""
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(100.0))
    data = path.read_bytes()
    for bit in range(8):
        place = data.index(b"\x93NUMPY") + 8
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        with pytest.raises(ValueError, match="CRC-32"):
            read_npz(path)


def test_a_member_that_claims_more_than_it_can_be_is_not_unpacked(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(1000))
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\1\2")
    data[directory + 24 : directory + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"a member of \d+ bytes, method 8, claims 2147483648"):
        read_npz(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_npz_of_other_methods_than_numpy_writes_are_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("a.npy", npy(np.zeros(3)))
    with pytest.raises(ValueError, match="method"):
        read_npz(tmp_path / "a.npz")


def test_a_missing_file_is_missing_and_not_damaged(tmp_path):
    for read in (read_npz, read_safetensors):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")


def test_safetensors_with_lying_headers_are_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": np.arange(6, dtype=np.float32)}, path)
    assert read_safetensors(path)["w"].tolist() == [0, 1, 2, 3, 4, 5]
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header, data = json.loads(path.read_bytes()[8 : 8 + length]), path.read_bytes()[8 + length :]
    lies = [
        {"dtype": "F99"},
        {"shape": [10**15]},
        {"shape": [-6]},
        {"data_offsets": [0, 10**15]},
        {"data_offsets": [24, 0]},
    ]
    for lie in lies:
        text = json.dumps({"w": header["w"] | lie}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        with pytest.raises(ValueError, match=r"w.safetensors is not a safetensors file: ") as caught:
            read_safetensors(path)
        assert "\n" not in str(caught.value)
