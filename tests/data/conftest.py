"""Shards of numbered samples for the tests of this part."""

from collections.abc import Callable
from pathlib import Path

import pytest
from numbered_source import NumberedSource, NumberedSourceConfig

from dydiff_dist.data.convert import convert


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Writes numbered shards and returns the training folder."""

    def make(name: str = "shards", **options: object) -> Path:
        convert(NumberedSource(NumberedSourceConfig(**options)), tmp_path / name)
        return tmp_path / name / "train"

    return make
