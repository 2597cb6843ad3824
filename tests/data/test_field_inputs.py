"""Small inputs after public bug reports, made by scripts: each is converted or refused in one line."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dydiff_dist.errors import user_message

REPOSITORY = Path(__file__).resolve().parents[2]
PREPARED = {
    **dict.fromkeys(("big_endian_npy", "unicode", "spaces", "val_folder", "store", "links", "caps", "netcdf"), True),
    **dict.fromkeys(("cf_h5", "cf_zarr", "odd", "zarr_array", "rotated", "bt709"), True),
    **dict.fromkeys(("sizes", "no_channel", "short_actions", "h5_group", "h5_tensor", "cut", "rates"), False),
}
"""Whether the inputs of ``arrays`` can be converted as they are."""


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
        assert done == PREPARED.get(path.name, done) or path.parent.name not in ("arrays", "video"), (path, line)
