"""Packed values against the formulas of the conventions."""

import base64
import struct

import numpy as np
import pytest

from dydiff_dist.data.packing import unpack

PACKED = np.array([[-32768, -100], [0, 3000]], np.int16)


def test_scale_and_offset():
    found = unpack(PACKED, {"scale_factor": np.array([0.01]), "add_offset": 280.0, "_FillValue": np.int16(-32768)})
    assert found.values.dtype == np.float32 and found.is_missing.tolist() == [[True, False], [False, False]]
    np.testing.assert_allclose(found.values[1], [280, 310], rtol=1e-7)


def test_values_without_attributes_are_what_they_are():
    found = unpack(PACKED, {"units": "K", "long_name": "temperature"})
    assert found.values is PACKED and found.is_missing is None


@pytest.mark.parametrize(
    ("stored", "attributes", "missing"),
    [
        (np.array([0, 7, 9], np.uint8), {"missing_value": np.array([7, 9])}, [0, 1, 1]),
        (np.array([0, 7, 9], np.uint8), {"valid_min": 1, "valid_max": 8}, [1, 0, 1]),
        (np.array([0, 7, 9], np.uint8), {"valid_range": [1, 8]}, [1, 0, 1]),
        # limits of packed data are packed, unless they are real numbers
        (np.array([0, 7, 9], np.int16), {"valid_max": 8, "scale_factor": 10.0}, [0, 0, 1]),
        (np.array([0, 7, 9], np.int16), {"valid_max": 80.0, "scale_factor": 10.0}, [0, 0, 1]),
        (np.array([1, -1e34, np.nan], np.float32), {"_FillValue": -1e34}, [0, 1, 1]),
        (np.array([1, 2, np.inf], np.float32), {"_FillValue": "NaN"}, [0, 0, 1]),
        (np.array([1, 2, 3.5]), {"_FillValue": base64.b64encode(struct.pack("<d", 3.5)).decode()}, [0, 0, 1]),
        (np.array([1, -1, -128], np.int8), {"_Unsigned": "true", "_FillValue": np.int8(-1)}, [0, 1, 0]),
        (np.array([1, -1, -128], np.int8), {"_Unsigned": b"true", "valid_max": 200}, [0, 1, 0]),
    ],
)
def test_missing_values(stored, attributes, missing):
    assert unpack(stored, attributes).is_missing.astype(int).tolist() == missing


def test_signs_are_as_said():
    assert unpack(np.array([-1], np.int8), {"_Unsigned": "true"}).values.tolist() == [255]
    assert unpack(np.array([255], np.uint8), {"_Unsigned": "false"}).values.tolist() == [-1]
    assert unpack(np.array([-1], ">i2"), {"_Unsigned": "true", "scale_factor": 2.0}).values.tolist() == [131070]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"gain": 2.0}, "an attribute 'gain' may change its values"),
        ({"FillValue": 2.0}, "--packing stored"),
        ({"scale_factor": [1.0, 2.0]}, "its scale_factor holds 2 numbers"),
        ({"add_offset": "much"}, "its attribute add_offset is 'much', no number"),
        ({"valid_range": 3}, "its valid_range holds 1 numbers, not 2"),
    ],
)
def test_what_is_not_understood_is_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        unpack(PACKED, attributes)
