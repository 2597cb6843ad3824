"""One damaged input among many, for every source: the others are converted, it is named, and the rate decides."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from catalogue_inputs import write_lerobot, write_well
from damage import drop_middle, overwrite, truncate, zero_blocks
from small_inputs import COUNT, write_arrays, write_bair, write_pdebench, write_robonet, write_sevir, write_weather

from dydiff_dist.data.convert import convert
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.source import SOURCES

WRITERS = {
    **{
        f"arrays{suffix}": ("arrays", lambda root, suffix=suffix: write_arrays(root, suffix))
        for suffix in (".npy", ".npz", ".h5", ".zarr", ".mp4")
    },
    "bair": ("bair", write_bair),
    "pdebench": ("pdebench", write_pdebench),
    "robonet": ("robonet", write_robonet),
    "sevir": ("sevir", write_sevir),
    "well": ("well", lambda root: write_well(root, COUNT, num_steps=3)),
    "lerobot": ("lerobot", lambda root: write_lerobot(root, (3,) * COUNT, "v2.1", cameras=("top",))),
    "weather": ("weather", write_weather),
}
CERTAIN = {
    "empty": lambda data, rng: b"",
    "truncate": truncate,
    "another kind": lambda data, rng: b"<html>404 Not Found</html>",
}
"""Damage that leaves nothing to be read as if it were whole."""
POSSIBLE = {"overwrite": overwrite, "drop": drop_middle, "zeros": zero_blocks}
"""Damage that a format without checksums may not show."""


def convert_all(source: str, options: dict, out: Path, rate: float = 1.0) -> tuple[dict[str, bytes], list[str]]:
    """Frames by key, and the names of what was rejected."""
    kind = SOURCES[source]
    report = convert(kind.source(kind.config(**options)), out, max_bad_rate=rate)
    shards = ShardSet.open(out / "train", check="sha256")
    samples = [shards.read(shards.address(number)) for number in range(len(shards))]
    return {sample.key: sample.frames.tobytes() for sample in samples}, [item.name for item in report.bad_items]


def inputs(root: Path) -> list[Path]:
    """Files that hold one input each; of a zarr store, its chunks."""
    of_all = ("CATALOG.csv", "zarr.json", "info.json", "episodes.jsonl")
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in of_all)
    return [path for path in paths if ".zarr" not in str(path) or "/c/" in str(path)]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "weather" else name for name in WRITERS]
)
def test_one_damaged_input_is_named_and_the_others_are_converted(tmp_path, name):
    source, write = WRITERS[name]
    (tmp_path / "in").mkdir()
    options = write(tmp_path / "in")
    whole, rejected = convert_all(source, options, tmp_path / "whole")
    assert len(whole) >= COUNT and not rejected
    rng = random.Random(name)
    for trial, (kind, damage) in enumerate([*CERTAIN.items(), *POSSIBLE.items(), *POSSIBLE.items()]):
        victim = rng.choice(inputs(tmp_path / "in"))
        kept = victim.read_bytes()
        victim.write_bytes(damage(kept, rng))
        found, rejected = convert_all(source, options, tmp_path / f"out{trial}")
        place = next(part for part in victim.relative_to(tmp_path / "in").as_posix().split("/") if "." in part)
        assert all(place in item for item in rejected), (kind, victim, rejected)
        assert len(found) >= COUNT - 1 and found.keys() <= whole.keys()
        changed = [key for key in whole if found.get(key) != whole[key]]
        # a pixel that became SEVIR's 255 is missing: such a window is left out and counted, not rejected
        assert len(changed) <= 1 and (len(found) == len(whole) or rejected or source == "sevir"), (kind, victim)
        assert rejected or kind not in CERTAIN, (kind, victim)
        if rejected:
            with pytest.raises(ValueError, match=r"1 of \d+ inputs are bad, more than the allowed rate 0.0"):
                convert_all(source, options, tmp_path / f"strict{trial}", rate=0.0)
        victim.write_bytes(kept)


@pytest.mark.parametrize("word", ["nan", "", "inf", "#N/A"])
def test_one_damaged_number_of_a_series_takes_the_windows_that_hold_it_until_it_is_mended(tmp_path, word):
    rng = random.Random(word)
    rows = [[str(rng.randint(1, 99)) for _ in range(3)] for _ in range(60)]
    path = tmp_path / "series.csv"
    options = {"train_file": str(path), "horizon": 3, "context": 3}
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    whole, rejected = convert_all("timeseries", options, tmp_path / "whole")
    assert not rejected
    time = rng.randrange(10, 40)
    rows[time][rng.randrange(3)] = word
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    found, rejected = convert_all("timeseries", options, tmp_path / "out")
    lost = {key for key in whole if key not in found}
    assert len(lost) == 6 and len(rejected) == 1 and all(found[key] == whole[key] for key in found)
    with pytest.raises(ValueError, match=r"inputs are bad, more than the allowed rate 0.0"):
        convert_all("timeseries", options, tmp_path / "strict", rate=0.0)
    rows[time] = ["7", "7", "7"]
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    again, rejected = convert_all("timeseries", options, tmp_path / "out")
    assert len(again) == len(whole) and not rejected


def test_a_shard_of_several_processes_names_the_same(tmp_path):
    (tmp_path / "in").mkdir()
    options = write_arrays(tmp_path / "in", ".npy")
    (tmp_path / "in" / "run-05.npy").write_bytes(b"")
    kind = SOURCES["arrays"]
    source = kind.source(kind.config(**options, trajectories_per_shard=4))
    report = convert(source, tmp_path / "out", num_processes=2)
    assert [item.name for item in report.bad_items] == ["run-05.npy"] and report.manifests


def test_an_hdf5_file_that_a_writer_holds_is_named(tmp_path):
    """The lock belongs to another process's open file, as a running simulation's."""
    (tmp_path / "in").mkdir()
    options = write_arrays(tmp_path / "in", ".h5")
    hold = "import sys, h5py; file = h5py.File(sys.argv[1], 'r+'); print('held', flush=True); sys.stdin.read()"
    path = str(tmp_path / "in" / "run-03.h5")
    with subprocess.Popen(
        [sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        found, rejected = convert_all("arrays", options, tmp_path / "out")
        holder.stdin.close()
    assert rejected == ["run-03.h5"] and len(found) == COUNT - 1
