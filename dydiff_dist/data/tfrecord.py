"""Reading TFRecord files of tf.train.Example messages without TensorFlow.

A record is: length (8 bytes), masked CRC-32C of the length (4), the message, masked CRC-32C of the message (4).
Checksums are tensorboard's, messages are parsed by protobuf, which comes with it. Its own reader of records takes them
from the first to the last; here a record is read by its place, so that any process can read any part of a file. A file
that is compressed with gzip as a whole is unpacked in memory, and places are those in the unpacked one.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from dydiff_dist.data.tables import is_gzip, read_unpacked

FeatureValue = list[bytes] | np.ndarray
"""Byte strings, or a float32 or int64 array."""

_MESSAGES = {
    "BytesList": {"value": "repeated bytes"},
    "FloatList": {"value": "repeated float"},
    "Int64List": {"value": "repeated int64"},
    "Feature": {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"},
    "Entry": {"key": "string", "value": "Feature"},
    "Features": {"feature": "repeated Entry"},
    "Example": {"features": "Features"},
}
"""The messages that make a tf.train.Example; fields are numbered in order. ``Entry`` is what a map is made of."""


@dataclass(frozen=True)
class Record:
    """Where a message lies in its file."""

    offset: int
    """First byte of the message."""
    size: int
    """Bytes of the message."""


def scan_records(path: Path) -> list[Record]:
    """All records of a file, from their lengths alone; errors as ``iterate_records``."""
    return list(iterate_records(path))


def iterate_records(path: Path) -> Iterator[Record]:
    """The records of a file in order, from their lengths alone, up to the first that is damaged.

    Raises:
        ValueError: a damaged record, by number and place, or a damaged gzip file.
    """
    number = 0
    with _opened(path) as file:
        size = file.seek(0, io.SEEK_END)
        position = file.seek(0)
        while position < size:
            header = file.read(12)
            if len(header) < 12 or masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]:
                raise ValueError(f"{path}: record {number} at byte {position} has a damaged length; restore the file")
            length = struct.unpack("<Q", header[:8])[0]
            if position + 16 + length > size:
                raise ValueError(f"{path}: record {number} at byte {position} is cut off; restore the file")
            yield Record(position + 12, length)
            number += 1
            position += 16 + length
            file.seek(position)


def read_example(path: Path, record: Record) -> dict[str, FeatureValue]:
    """The features of one record by name.

    Raises:
        ValueError: its checksum is wrong, or it is no tf.train.Example.
    """
    with _opened(path) as file:
        file.seek(record.offset)
        message = file.read(record.size)
        checksum = file.read(4)
    if len(checksum) < 4 or masked_crc32c(message) != struct.unpack("<I", checksum)[0]:
        raise ValueError(f"the record at byte {record.offset} is damaged: its CRC-32C is wrong")
    return parse_example(message)


def _opened(path: Path) -> BinaryIO:
    """The file, without gzip's compression."""
    if not is_gzip(path):
        return open(path, "rb")
    return io.BytesIO(_unpacked(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=1)
def _unpacked(path: Path, _: int) -> bytes:
    """The last packed file that was asked for; its records are read in turn."""
    return read_unpacked(path)


def parse_example(message: bytes) -> dict[str, FeatureValue]:
    """The features of a serialised tf.train.Example, by name; a feature without values is an empty list.

    Raises:
        ValueError: not such a message.
    """
    try:
        example = _example_class().FromString(message)
    except DecodeError as error:
        raise ValueError(f"the message is damaged: {error}") from None
    return {entry.key: _value(entry.value) for entry in example.features.feature}


def _value(feature: Any) -> FeatureValue:
    if feature.HasField("float_list"):
        return np.array(feature.float_list.value, np.float32)
    if feature.HasField("int64_list"):
        return np.array(feature.int64_list.value, np.int64)
    return list(feature.bytes_list.value)


@lru_cache(maxsize=1)
def _example_class() -> Any:
    """protobuf's class for tf.train.Example."""
    file = descriptor_pb2.FileDescriptorProto(name="dydiff_dist/example.proto", package="dydiff_dist", syntax="proto3")
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            label = field_type.LABEL_REPEATED if kind.startswith("repeated ") else field_type.LABEL_OPTIONAL
            kind = kind.removeprefix("repeated ")
            if kind in _MESSAGES:
                of_kind = {"type": field_type.TYPE_MESSAGE, "type_name": f".dydiff_dist.{kind}"}
            else:
                of_kind = {"type": field_type.Type.Value(f"TYPE_{kind.upper()}")}
            message.field.add(name=field, number=number, label=label, **of_kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("dydiff_dist.Example"))
