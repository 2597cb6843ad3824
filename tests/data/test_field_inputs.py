"""Small inputs after public bug reports, made by scripts: each is converted or refused in one line."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dydiff_dist.errors import user_message

REPOSITORY = Path(__file__).resolve().parents[2]
DONE = {
    "arrays": (
        *("big_endian_npy", "unicode", "spaces", "val_folder", "store", "links", "caps", "netcdf"),
        *("cf_h5", "cf_zarr", "odd", "zarr_array"),
    ),
    "video": ("rotated", "bt709"),
    "robonet": (
        *("empty_actions", "nan_actions", "nan_states", "bad_jpg", "no_metadata", "uint8_actions", "states_1d"),
        *("linked", "store_b"),
    ),
    "sevir": ("plain", "duplicate", "nthw", "zone", "nat", "gzip", "bom", "partial", "gap"),
    "series": (
        *("plain.txt", "unpacked.txt.gz", "bom.csv", "dates.csv", "header.csv", "semicolon.csv", "gap.csv", "nan.csv"),
        *("nan_in_test.csv", "clients_all.txt", "clients_late.txt"),
    ),
}
"""What is converted as it is, but for inputs that are rejected by name."""
REFUSED = {
    "arrays": ("sizes", "no_channel", "short_actions", "h5_group", "h5_tensor"),
    "video": ("cut", "rates"),
    "sevir": ("lr_with_id",),
    "series": ("decimal_comma_one.csv",),
}
"""What is refused as a whole, with the option that decides where there is one."""


@pytest.fixture(scope="module")
def field_inputs(tmp_path_factory, sample_data) -> Path:
    """Folders arrays, video, robonet, sevir and series, as the scripts make them."""
    scripts = Path(os.environ.get("DYDIFF_FIELD_SCRIPTS") or sample_data.parent / "field")
    if not scripts.is_dir():
        pytest.skip(f"no scripts at {scripts}; set DYDIFF_FIELD_SCRIPTS")
    folder = tmp_path_factory.mktemp("field")
    for name in ("arrays", "video", "robonet", "sevir", "series"):
        data = [] if name in ("arrays", "video") else [str(sample_data)]
        command = [sys.executable, str(scripts / f"make_{name}.py"), *data, str(folder / name)]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder


def make_shards(*words: object) -> tuple[bool, str]:
    """Whether the command line succeeds in this process, and the line that it would print if it does not; what has no
    line, a bug, is raised."""
    spec = importlib.util.spec_from_file_location("make_shards_tool", REPOSITORY / "tools" / "make_shards.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    kept, sys.argv = sys.argv, ["make_shards.py", *map(str, words)]
    try:
        tool.main()
    except Exception as error:
        line = user_message(error)
        if line is None:
            raise
        return False, line
    finally:
        sys.argv = kept
    return True, ""


def cases(folder: Path) -> list[tuple[Path, list[object]]]:
    """Each input with the words of its command."""
    found = [
        (path, ["arrays", "--root", path, "--num-frames", 8])
        for kind in ("arrays", "video")
        for path in sorted((folder / kind).iterdir())
    ]
    found += [
        (path, ["robonet", "--root", path, "--num-frames", 15]) for path in sorted((folder / "robonet").iterdir())
    ]
    found += [
        (path, ["sevir", "--root", path, "--window-frames", 13, "--window-step", 12])
        for path in sorted((folder / "sevir").iterdir())
    ]
    found += [
        (path, ["timeseries", "--train-file", path, "--protocol", "exchange"])
        for path in sorted((folder / "series").iterdir())
    ]
    return found


@pytest.mark.slow
def test_no_input_of_the_field_ends_in_a_traceback(field_inputs, tmp_path):
    listed = cases(field_inputs)
    assert len(listed) > 40
    for path, words in listed:
        out = tmp_path / path.parent.name / path.name
        done, line = make_shards(*words, "--out", out, "--processes", 1)
        assert line.count("\n") == 0 and done == any(out.glob("*/manifest.json")), (path, line)
        known = {True: path.name in DONE[path.parent.name], False: path.name in REFUSED.get(path.parent.name, ())}
        assert known[done] or not any(known.values()), (path, line)
