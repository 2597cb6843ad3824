"""Reading TFRecord files of tf.train.Example messages without TensorFlow.

A record is: length (8 bytes), masked CRC-32C of the length (4), the message, masked CRC-32C of the message (4). The
message is a protocol buffer whose few fields are parsed here: Example{1: Features{1: map of name to Feature}}, with
Feature{1: BytesList | 2: FloatList | 3: Int64List}, each a repeated field 1.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

FeatureValue = list[bytes] | np.ndarray
"""Byte strings, or a float32 or int64 array."""

CASTAGNOLI = 0x82F63B78
"""Polynomial of CRC-32C, reflected."""

LANES = 256
"""Stretches of a buffer whose checksums are computed side by side."""


@dataclass(frozen=True)
class Record:
    """Where a message lies in its file."""

    offset: int
    """First byte of the message."""
    size: int
    """Bytes of the message."""


def scan_records(path: Path) -> list[Record]:
    """All records of a file, from their lengths alone; ``ValueError`` names a damaged one."""
    records = []
    size = path.stat().st_size
    with open(path, "rb") as file:
        position = 0
        while position < size:
            header = file.read(12)
            if len(header) < 12 or masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]:
                raise ValueError(
                    f"{path}: record {len(records)} at byte {position} has a damaged length; restore the file"
                )
            length = struct.unpack("<Q", header[:8])[0]
            if position + 16 + length > size:
                raise ValueError(f"{path}: record {len(records)} at byte {position} is cut off; restore the file")
            records.append(Record(position + 12, length))
            position += 16 + length
            file.seek(position)
    return records


def read_example(path: Path, record: Record) -> dict[str, FeatureValue]:
    """The features of one record; ``ValueError`` if its checksum is wrong."""
    with open(path, "rb") as file:
        file.seek(record.offset)
        message = file.read(record.size)
        checksum = file.read(4)
    if len(checksum) < 4 or masked_crc32c(message) != struct.unpack("<I", checksum)[0]:
        raise ValueError(f"the record at byte {record.offset} is damaged: its CRC-32C is wrong")
    return parse_example(message)


def parse_example(message: bytes) -> dict[str, FeatureValue]:
    """The features of a serialised tf.train.Example, by name."""
    features = {}
    for number, example_field in _fields(memoryview(message)):
        if number != 1:
            continue
        for _, entry in _fields(example_field):
            parts = dict(_fields(entry))
            features[bytes(parts[1]).decode()] = _feature(parts.get(2, memoryview(b"")))
    return features


def _feature(message: memoryview) -> FeatureValue:
    """The value of one Feature; an empty one is an empty list."""
    for kind, values in _fields(message):
        if kind == 1:
            return [bytes(value) for _, value in _fields(values)]
        packed = b"".join(
            value if isinstance(value, memoryview) else _varint_bytes(value) for _, value in _fields(values)
        )
        if kind == 2:
            return np.frombuffer(packed, "<f4")
        if kind == 3:
            return np.array(list(_varints(memoryview(packed))), np.uint64).astype(np.int64)
    return []


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, value) of each field: bytes of length-delimited and fixed fields, integers of varints."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(message, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"the message is damaged: wire type {wire_type}")
        if position + length > len(message):
            raise ValueError("the message is damaged: a field is longer than the rest of it")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A variable-length integer and the position after it."""
    value = shift = 0
    while True:
        if position >= len(message):
            raise ValueError("the message is damaged: it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _varints(message: memoryview) -> Iterator[int]:
    position = 0
    while position < len(message):
        value, position = _varint(message, position)
        yield value


def _varint_bytes(value: int) -> bytes:
    """An integer as a variable-length integer."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def masked_crc32c(data: bytes) -> int:
    """CRC-32C rotated and shifted by a constant, as TFRecord stores it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli). The buffer is cut into lanes that advance side by side and are then folded together.

    The register is linear over GF(2): that of A followed by B, started at 0, is that of A advanced by len(B) zero
    bytes, xor that of B. Zero bytes in front leave a register of 0 at 0, so whole lanes are filled up there.
    """
    lane_bytes = -(-len(data) // LANES)
    padded = np.zeros(LANES * lane_bytes, np.uint8)
    if data:
        padded[-len(data) :] = np.frombuffer(data, np.uint8)
    table = _byte_table()
    registers = np.zeros(LANES, np.uint32)
    for column in padded.reshape(LANES, lane_bytes).T:
        registers = table[(registers ^ column) & 0xFF] ^ (registers >> np.uint32(8))
    while len(registers) > 1:
        registers = _advance(registers[0::2], lane_bytes) ^ registers[1::2]
        lane_bytes *= 2
    start = _advance(np.array([0xFFFFFFFF], np.uint32), len(data))
    return int(registers[0] ^ start[0]) ^ 0xFFFFFFFF


@lru_cache(maxsize=1)
def _byte_table() -> np.ndarray:
    """Register after one byte, for each byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(CASTAGNOLI), table >> np.uint32(1))
    return table


def _advance(registers: np.ndarray, num_bytes: int) -> np.ndarray:
    """Registers after ``num_bytes`` zero bytes, by repeated squaring of the one-byte step."""
    step = _one_byte_step()
    while num_bytes:
        if num_bytes & 1:
            registers = _apply(step, registers)
        step = _apply(step, step)
        num_bytes >>= 1
    return registers


@lru_cache(maxsize=1)
def _one_byte_step() -> np.ndarray:
    """The linear map of one zero byte: its image of each of the 32 bits."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    return _byte_table()[bits & 0xFF] ^ (bits >> np.uint32(8))


def _apply(step: np.ndarray, registers: np.ndarray) -> np.ndarray:
    """A linear map (32 images of bits) on each register."""
    result = np.zeros_like(registers)
    for bit in range(32):
        result ^= np.where(registers >> np.uint32(bit) & np.uint32(1), step[bit], np.uint32(0))
    return result
