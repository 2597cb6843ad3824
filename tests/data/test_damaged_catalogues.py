"""What describes a whole data set, damaged at random: a plan, or one line that says what is wrong."""

import random
import re

import pytest
from catalogue_inputs import write_lerobot, write_radar, write_well
from damage import DAMAGES, change_json
from test_well import STATS

from dydiff_dist.data.source import SOURCES, Sample

NUM_TRIALS = 60


def well(root):
    options = write_well(root, count=1)
    (root / "stats.yaml").write_text(STATS)
    return "well", {**options, "fields": ("density", "velocity"), "normalisation": "stats"}


def radar(root):
    root.mkdir()
    return "radar_h5", write_radar(root)


WRITERS = {
    "stats.yaml": well,
    "run_00.hdf5": well,
    "radar.h5": radar,
    "info.json": lambda root: ("lerobot", write_lerobot(root, (6, 6))),
    "file-000.parquet": lambda root: ("lerobot", write_lerobot(root, (6, 6))),
    "episodes.jsonl": lambda root: ("lerobot", write_lerobot(root, (6, 6), "v2.1")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_description_is_one_line(tmp_path, name):
    source, options = WRITERS[name](tmp_path / "in")
    kind = SOURCES[source]
    victim = sorted((tmp_path / "in").rglob(name))[-1]
    kept = victim.read_bytes()
    planned = 0
    for trial in range(NUM_TRIALS):
        rng = random.Random(trial)
        damages = [*DAMAGES, *([change_json] * len(DAMAGES) if name == "info.json" else [])]
        victim.write_bytes(rng.choice(damages)(kept, rng))
        made = kind.source(kind.config(**options))
        try:
            tasks = made.plan()
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error) and re.search(r"\w", str(error)), (trial, error)
            continue
        planned += 1
        results = [result for task in tasks for result in (*task.aside, *made.read(task))]
        for result in results:
            if isinstance(result, Sample):
                made.schema(result)
            else:
                assert "\n" not in result.reason
    assert planned
