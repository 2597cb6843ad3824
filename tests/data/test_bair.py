"""TFRecords without TensorFlow, against protobuf's own parser."""

import io
import struct

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c
from test_converters import tar_members

from dydiff_dist.data.convert import convert
from dydiff_dist.data.manifest import Manifest, read_document
from dydiff_dist.data.sources.bair import BairSource, BairSourceConfig
from dydiff_dist.data.tfrecord import parse_example, scan_records


def example_class():
    """tf.train.Example, declared here so that protobuf can parse and write it."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    kinds = [("BytesList", field.TYPE_BYTES), ("FloatList", field.TYPE_FLOAT), ("Int64List", field.TYPE_INT64)]
    for name, kind in kinds:
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, _) in enumerate(kinds, start=1):
        feature.field.add(
            name=name.lower(),
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=f".t.{name}",
            label=field.LABEL_OPTIONAL,
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_MESSAGE, type_name=".t.Feature", label=field.LABEL_OPTIONAL)
    features.field.add(
        name="feature",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".t.Features.FeatureEntry",
        label=field.LABEL_REPEATED,
    )
    example = file.message_type.add(name="Example")
    example.field.add(
        name="features", number=1, type=field.TYPE_MESSAGE, type_name=".t.Features", label=field.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


EXAMPLE = example_class()


def read_records(path):
    """The messages of a file, by protobuf."""
    data, position, examples = path.read_bytes(), 0, []
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        examples.append(EXAMPLE.FromString(data[position + 12 : position + 12 + length]))
        position += 16 + length
    return examples


@pytest.mark.parametrize("camera", ["main", "aux1"])
def test_frames_actions_and_states_equal_protobufs_reading(sample_data, tmp_path, camera):
    root = sample_data / "bair" / "softmotion30_44k"
    convert(BairSource(BairSourceConfig(root=str(root), camera=camera, valid_fraction=0.0)), tmp_path)
    for split, count in (("train", 9), ("test", 1)):
        examples = read_records(next((root / split).glob("*.tfrecords")))
        assert len(examples) == count
        members = tar_members(tmp_path / split)
        frame_names = sorted(name for name in members if name.endswith(".frames.npy"))
        for name, example in zip(frame_names, examples, strict=True):
            features = example.features.feature
            stored = {
                kind: np.load(io.BytesIO(members[name.replace("frames", kind)])) for kind in ("actions", "states")
            }
            for t, frame in enumerate(np.load(io.BytesIO(members[name]))):
                raw = features[f"{t}/image_{camera}/encoded"].byteslist.value[0]
                assert frame.transpose(1, 2, 0).tobytes() == raw
                assert stored["states"][t].tolist() == list(features[f"{t}/endeffector_pos"].floatlist.value)
                action = features[f"{t - 1}/action"].floatlist.value if t else [0, 0, 0, 0]
                assert stored["actions"][t].tolist() == list(action)


def test_every_kind_of_feature_is_parsed():
    example = EXAMPLE()
    example.features.feature["bytes"].byteslist.value.extend([b"a", b""])
    example.features.feature["floats"].floatlist.value.extend([1.5, -2.0])
    example.features.feature["ints"].int64list.value.extend([3, -1, 2**40])
    example.features.feature["none"].SetInParent()
    found = parse_example(example.SerializeToString())
    assert found["bytes"] == [b"a", b""] and found["none"] == []
    assert found["floats"].tolist() == [1.5, -2.0] and found["ints"].tolist() == [3, -1, 2**40]


def test_crc32c_known_values():
    """RFC 3720, B.4, and the usual check value: tensorboard's function is of a part without promises."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


def test_damaged_records_are_named(sample_data, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        source = next((sample_data / "bair" / "softmotion30_44k" / split).glob("*.tfrecords"))
        (tmp_path / split / source.name).write_bytes(source.read_bytes())
    train = next((tmp_path / "train").glob("*.tfrecords"))
    data = bytearray(train.read_bytes())
    data[scan_records(train)[2].offset + 5000] ^= 1
    train.write_bytes(data)
    report = convert(BairSource(BairSourceConfig(root=str(tmp_path), valid_fraction=0.0)), tmp_path / "out")
    assert [item.name for item in report.bad_items] == [f"train/{train.name}, record 2"]
    assert "CRC-32C is wrong" in report.bad_items[0].reason
    train.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"record 8 at byte .* is cut off"):
        scan_records(train)
    report = convert(BairSource(BairSourceConfig(root=str(tmp_path), valid_fraction=0.0)), tmp_path / "out")
    reasons = {item.name: item.reason for item in report.bad_items}
    assert set(reasons) == {f"train/{train.name}", f"train/{train.name}, record 2"}
    assert "record 8 at byte" in reasons[f"train/{train.name}"] and report.rewritten == {"their inputs changed": 1}
    assert read_document(report.manifests["train"], Manifest).num_samples == 7
