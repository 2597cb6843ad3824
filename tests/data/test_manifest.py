"""What a manifest's schema says of the frames: bounds and colours."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from numbered_source import NumberedSource, NumberedSourceConfig
from pydantic import ValidationError

from dydiff_dist.data.convert import convert
from dydiff_dist.data.inspection import describe, save_pictures
from dydiff_dist.data.manifest import RGB, FrameSchema
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import schema_of
from dydiff_dist.data.sources.sevir_values import bounds, vil_to_kg_per_m2


def schema(**facts):
    return FrameSchema(num_frames=2, shape=(3, 4, 4), dtype="float32", **facts)


def test_bounds_become_arrays_that_clip_and_survive_json():
    kept = FrameSchema.model_validate_json(schema(bounds=((0, None), (None, 5), (-1.5, 2))).model_dump_json())
    values = np.stack([np.full((4, 4), number, float) for number in (-3, 7, -3)])
    assert np.clip(values, *kept.limits())[:, 0, 0].tolist() == [0, 5, -1.5]
    assert np.array_equal(np.clip(values, *schema().limits()), values)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(((0, 1),), "bounds are of 1 channels"), (((0, 1), (3, 2), (0, None)), r"bounds \(3.*, 2.*\) are not in order")],
)
def test_bounds_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        schema(bounds=wrong)


@pytest.mark.parametrize(
    ("image_type", "values", "expected"),
    [
        ("vil", "stored", (0, 254)),
        ("vil", "physical", (0, float(vil_to_kg_per_m2(np.array(254))))),
        ("vil", "log", (0, float(np.log1p(vil_to_kg_per_m2(np.array(254)))))),
        ("lght", "log", (0, None)),
        ("ir069", "stored", (None, None)),
    ],
)
def test_sevirs_bounds_are_in_stored_units(image_type, values, expected):
    low, high = bounds(image_type, values)
    # Converted values are float32.
    assert low == expected[0] and high == (expected[1] and pytest.approx(expected[1], rel=1e-7))


class FloatColours(NumberedSource):
    """RGB frames from 0 to 1, of which only a part of the range occurs."""

    def read(self, task):
        for number in range(2):
            yield Sample(f"picture-{number}", np.full((5, 3, 4, 4), 0.25, np.float32))

    def schema(self, sample):
        return schema_of(sample, channels=RGB, bounds=((0, 1),) * 3)


class UnnamedColours(NumberedSource):
    """Three channels of 8 bits, as people store pictures, at a fifth of white."""

    def read(self, task):
        for number in range(2):
            yield Sample(f"picture-{number}", np.full((5, 3, 4, 4), 51, np.uint8))

    def schema(self, sample):
        return schema_of(sample)


def drawn_pixels(source, folder, monkeypatch):
    """What is drawn of two samples, and the settings of each picture."""
    convert(source(NumberedSourceConfig(counts=(2,))), folder / "out")
    drawn = []
    monkeypatch.setattr(Axes, "imshow", lambda axis, pixels, **settings: drawn.append((pixels, settings)))
    save_pictures(ShardSet.open(folder / "out" / "train"), folder / "picture.png", num_samples=2)
    return drawn


def test_colours_are_drawn_as_they_are_between_their_bounds(tmp_path, monkeypatch):
    drawn = drawn_pixels(FloatColours, tmp_path, monkeypatch)
    assert len(drawn) == 10 and all((pixels == 0.25).all() and not settings for pixels, settings in drawn)
    lines = describe(ShardSet.open(tmp_path / "out" / "train"))
    assert "max 0.25 within 0 to 1; network units" in "\n".join(lines)


def test_three_channels_of_8_bits_without_names_are_drawn_as_colours(tmp_path, monkeypatch):
    drawn = drawn_pixels(UnnamedColours, tmp_path, monkeypatch)
    assert len(drawn) == 10 and all((pixels == 0.2).all() and not settings for pixels, settings in drawn)
