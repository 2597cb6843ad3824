"""Sources of other packages: registered, converted by the command line, and refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dydiff_dist.data.sources  # noqa: F401 - registers them
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.source import SOURCES, Source, register_source, shard_tasks, split_of
from dydiff_dist.strict_config import StrictConfig

REPOSITORY = Path(__file__).resolve().parents[2]

WAVES = '''
import numpy as np
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import Source, register_source, schema_of, shard_tasks
from dydiff_dist.strict_config import StrictConfig


class WavesConfig(StrictConfig):
    num_samples: int = 6
    """Waves to make."""


@register_source("waves", WavesConfig, "Travelling waves.")
class WavesSource(Source[WavesConfig]):
    def plan(self):
        return shard_tasks("train", ((number, 2048) for number in range(self.config.num_samples)), 2)

    def read(self, task):
        for number in task.items:
            phase = np.arange(6)[:, None, None, None] + np.arange(16) + number
            yield Sample(f"wave-{number}", np.sin(phase / 4).astype(np.float32))

    def schema(self, sample):
        return schema_of(sample, channels=("height",), units="m")
'''


def make_shards(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "make_shards.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_source_of_ones_own_is_converted_by_several_processes(tmp_path):
    (tmp_path / "my_waves.py").write_text(WAVES)
    assert "invalid choice: 'waves'" in make_shards(tmp_path, "waves", "--out", "shards").stderr
    words = ["--import", "my_waves", "waves", "--out", "shards", "--processes", "2", "--num-samples", "5"]
    finished = make_shards(tmp_path, *words)
    assert finished.returncode == 0 and "train: 5 samples 6×1×1×16 float32, 3 shards" in finished.stdout, finished
    shards = ShardSet.open(tmp_path / "shards" / "train")
    assert len(shards) == 5 and shards.manifest.source == "waves" and shards.schema.units == "m"
    assert "Waves to make. Default: 6." in make_shards(tmp_path, "--import", "my_waves", "waves", "--help").stdout


@pytest.mark.slow
def test_a_module_that_cannot_be_imported_is_one_line(tmp_path):
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    for module, reason in (("nowhere", "No module named 'nowhere'"), ("broken", "ZeroDivisionError: division by zero")):
        finished = make_shards(tmp_path, "--import", module, "arrays", "--help")
        assert finished.returncode == 2 and finished.stderr.count("\n") == 1, finished
        assert finished.stderr.startswith(f"error: --import {module}: ") and reason in finished.stderr


def test_two_sources_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two sources are called 'bair'; give test_source\..* another name"):

        @register_source("bair", StrictConfig, "Not BAIR.")
        class OtherSource(Source[StrictConfig]):
            pass

    assert SOURCES["bair"].source.__module__ == "dydiff_dist.data.sources.bair"


def test_items_are_cut_into_shards_of_so_many():
    first, second = shard_tasks("valid", [("a", 3), ("b", 4), ("c", 5)], per_shard=2)
    assert (first.name, first.items, first.estimated_bytes) == ("valid-000000.tar", ("a", "b"), 7)
    assert (second.name, second.items, second.estimated_bytes) == ("valid-000001.tar", ("c",), 5)
    assert shard_tasks("test", [], per_shard=2) == []


def test_a_split_is_a_share_of_the_names_and_stays_when_others_change():
    names = [f"file-{number}" for number in range(2000)]
    splits = [split_of(name, 0.1, 0.2) for name in names]
    # shares of 2000 draws: three standard deviations are 0.027 and 0.020
    assert abs(splits.count("test") / 2000 - 0.2) < 0.027 and abs(splits.count("valid") / 2000 - 0.1) < 0.020
    wider = [split_of(name, 0.3, 0.2) for name in names]
    assert all(after == before for before, after in zip(splits, wider, strict=True) if before != "train")
