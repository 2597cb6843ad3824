"""Packed values against the formulas of the conventions."""

import base64
import struct

import numpy as np
import pytest

from dydiff_dist.data.packing import describe_missing, fill_masks, unpack

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


def masked(dtype=np.float32):
    """A window (3, 2, 2, 4) whose channel 1 lacks a column in all frames and one pixel more in the first."""
    values, missing = np.ones((3, 2, 2, 4), dtype), np.zeros((3, 2, 2, 4), bool)
    missing[:, 1, :, 0] = missing[0, 1, 1, 2] = True
    values[missing] = 9
    return values, missing


def test_what_all_frames_lack_is_filled_and_nothing_else():
    values, missing = masked()
    fill_masks(values, missing, (271.5,))
    assert (values[:, 1, :, 0] == 271.5).all() and (values[:, 0] == 1).all() and (values[:, 1, :, 1] == 1).all()
    assert np.argwhere(missing).tolist() == [[0, 1, 1, 2]] and values[0, 1, 1, 2] == 9


def test_each_channel_takes_a_value_of_its_own_and_an_absent_one_none():
    values, missing = masked()
    missing[:, 0] = True
    fill_masks(values, missing, (5.0, -1.5))
    assert (values[:, 1, :, 0] == -1.5).all() and missing[:, 0].all() and (values[:, 0] == 1).all()


@pytest.mark.parametrize(
    ("dtype", "fill", "message"),
    [
        (np.uint8, (256.0,), "--fill 256 is no value of frames of type uint8"),
        (np.int16, (1.5,), "--fill 1.5 is no value of frames of type int16"),
        (np.float32, (float("nan"),), "--fill nan is no value"),
        (np.float32, (1e39,), r"--fill 1e\+39 is no value of frames of type float32"),
        (np.float32, (1.0, 2.0, 3.0), "--fill has 3 values for 2 channels; give one, or one for each"),
    ],
)
def test_a_value_that_frames_do_not_hold_is_refused(dtype, fill, message):
    with pytest.raises(ValueError, match=message):
        fill_masks(*masked(dtype), fill)


def test_a_mask_is_told_from_a_gap():
    _, missing = masked()
    assert describe_missing(missing).startswith("7 of 48 values are missing, NaN or infinite, 2 pixels in all of the")
    assert "--fill VALUE" in describe_missing(missing)
    missing[:, 1, :, 0] = False
    assert describe_missing(missing) == "1 of 48 values are missing, NaN or infinite"


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
