"""Every option of every source, from the command line, in several processes: the same bytes as in one."""

import argparse
import json

import h5py
import numpy as np
import pytest
from catalogue_inputs import write_lerobot, write_radar_file, write_well
from small_inputs import write_records, write_weather
from test_converters import TINY_FLOW, write_trajectory
from test_sevir_inputs import pixels, rows, write

from dydiff_dist.data.convert import convert
from dydiff_dist.data.options import add_options, read_options
from dydiff_dist.data.source import SOURCES
from dydiff_dist.files import file_sha256
from dydiff_dist.strict_config import StrictConfig


def write_robonet(root):
    (root / "in").mkdir()
    for name in "abcdefgh":
        write_trajectory(root / "in" / f"{name}.hdf5", num_frames=5, num_actions=3, cameras=(0, 1))
    (root / "test.txt").write_text("a.hdf5\n")
    files = sorted((root / "in").iterdir())
    (root / "sums.txt").write_text("".join(f"{file_sha256(file)}  {file.name}\n" for file in files))
    shared = {"root": root / "in", "size": [12, 16], "trajectories_per_shard": 2, "valid_fraction": 0.3}
    filtered = {"where": ["robot=baxter", "adim=3"], "hashes": root / "sums.txt", "test_list": root / "test.txt"}
    actions = {"num_actions": 5, "action_mismatch": "pad", "num_states": 7, "state_mismatch": "pad"}
    return [
        {**shared, **filtered, **actions, "num_frames": 2, "cameras": [0, 1], "normalisation": "standard"},
        {**shared, "num_frames": 3, "num_actions": 4, "impute_autograsp": True, "action_mismatch": "pad_or_cut"}
        | {"test_fraction": 0.3},
    ]


def write_sevir(root):
    thin = pixels(num_events=6)[:, ::3, ::3, ::2]
    write(root / "lr", rows(6, pct_missing="1.0"), thin)
    write(root / "ir", rows(6, img_type="ir069"), pixels(num_events=6))
    with h5py.File(root / "ir" / "data" / rows()[0]["file_name"], "r+") as file:
        file["ir069"] = pixels(num_events=6).astype(np.int16)
    shared = {"events_per_shard": 1, "window_step": 12, "valid_start": "2019-03-01", "test_start": "2019-05-01"}
    thinned = {"layout": "time_last", "stored_stride": 2, "stored_downsample": 3, "max_pct_missing": 5.0}
    return [
        {**shared, **thinned, "root": root / "lr", "preset": "sevir-lr", "downsample": 6, "normalisation": "log_rain"},
        {**shared, "root": root / "ir", "image_type": "ir069", "values": "physical", "time_stride": 2}
        | {"window_frames": 9},
    ]


def write_series(root):
    values = np.arange(1.0, 201)[:, None] * [1.5, 2.5]
    text = "\n".join(";".join(f"{value:.2f}".replace(".", ",") for value in row) for row in values)
    (root / "train.csv").write_text(text)
    lines = [json.dumps({"target": values[:stop, d].tolist()}) for stop in (90, 92) for d in range(2)]
    (root / "test.jsonl").write_text("\n".join(lines))
    own = {"train_file": root / "train.csv", "samples_per_shard": 5, "decimal": "comma", "scaling": "none"}
    cut = {"horizon": 2, "context": 3, "train_step": 2, "valid_windows": 7}
    return [{**own, **cut, "test_file": root / "test.jsonl"}, {**own, "protocol": "exchange", "rolling_windows": 1}]


def write_bair(root):
    write_records(root / "train" / "a.tfrecords", range(6))
    write_records(root / "test" / "b.tfrecords", range(2))
    options = {"camera": "aux1", "num_frames": 2, "valid_fraction": 0.3, "normalisation": "standard"}
    return [{**options, "root": root, "trajectories_per_shard": 2}]


def write_arrays(root):
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        with h5py.File(root / f"{name}.h5", "w") as file:
            file["u"], file["act"] = rng.standard_normal((7, 12, 16, 2)).astype("f4"), rng.standard_normal((7, 2))
    names = {"frames_name": "u", "actions_name": "act", "channels": ["u", "v"], "units": "m/s"}
    kinds = {"layout": "channels_last", "packing": "stored", "absent_chunks": "fill", "fill": [0.5, 1.0], "fps": 5.0}
    cut = {"num_frames": 3, "window_step": 2, "trajectories_per_shard": 2, "allow": ["flip"], "vector_channels": [0, 1]}
    return [{"root": root, **names, **kinds, **cut, "valid_fraction": 0.3, "test_fraction": 0.2}]


def write_turbulence(root):
    whole = TINY_FLOW.model_copy(update={"train": 4, "seed": 3, "gap_frames": 2})
    options = whole.model_dump()
    flow = options.pop("flow")
    changed = {name: flow[name] for name in ("resolution", "force_min_wavenumber", "force_max_wavenumber")}
    return [{**options, "spin_up_frames": 2, **changed}]


def write_wells(root):
    write_well(root / "box", count=5, sizes=(4, 5, 6))
    tensor = "[[1, 2, 3], [4, 5, 6], [7, 8, 9]]"
    statistics = f"{{density: 2.0, D: {tensor}}}"
    (root / "box" / "stats.yaml").write_text(f"mean: {statistics}\nstd: {statistics}")
    own = {"fields": ["D", "density"], "normalisation": "stats", "slice_axis": "y", "slice_index": [1, 4]}
    return [{"root": root / "box", **own, "num_frames": 3, "window_step": 2, "trajectories_per_shard": 2}]


def write_radars(root):
    write_radar_file(root / "a.h5", {"train": 9, "test": 3})
    own = {"size": [8, 14], "fit": "pad", "full_scale": 90.0, "normalisation": "unit", "valid_fraction": 0.3}
    return [{"file": root / "a.h5", **own, "sequences_per_shard": 2, "preset": "shanghai"}]


def write_episodes(root):
    write_lerobot(root / "set", (9, 7, 8, 9, 8), cameras=("top", "side"))
    features = {"cameras": ["top", "side"], "action_key": "observation.state", "state_key": "action"}
    cut = {"num_frames": 3, "stride": 2, "size": [16, 24], "valid_fraction": 0.3, "test_fraction": 0.2}
    return [{"root": root / "set", **features, **cut, "normalisation": "standard", "episodes_per_shard": 1}]


def write_fields(root):
    rng = np.random.default_rng(0)
    for n in range(4):
        with h5py.File(root / f"ns-{n}.h5", "w") as file:
            for name, shape in (("velocity", (3, 9, 8, 8, 2)), ("particles", (3, 9, 8, 8, 1)), ("force", (3, 8, 8, 2))):
                file[name] = rng.standard_normal(shape).astype(np.float32)
    cut = {"num_frames": 2, "time_stride": 2, "window_step": 3, "space_stride": 2, "trajectories_per_shard": 2}
    kinds = {"fields": ["force", "velocity"], "boundary": "periodic", "valid_fraction": 0.3, "test_fraction": 0.2}
    return [{"root": root, **cut, **kinds}]


def write_globe(root):
    for name in ("files", "store"):
        (root / name).mkdir()
    write_weather(root / "files")
    xarray = pytest.importorskip("xarray", reason="xarray is an extra")
    pytest.importorskip("zarr", reason="zarr is an extra")
    parts = [xarray.load_dataset(path) for path in sorted((root / "files").iterdir())]
    levels = xarray.concat(parts, "time").rename(t2m="t").expand_dims(level=[850, 500])
    levels.to_zarr(root / "store" / "levels.zarr")
    split = {"train_start": "2019-12-31", "valid_start": "2020-01-03", "test_start": "2020-01-05T12:00"}
    cut = {"num_frames": 2, "time_stride": 2, "window_step": 1, "samples_per_shard": 3, "test_end": "2020-01-07"}
    kinds = {"packing": "stored", "absent_chunks": "fill", "fill": [0.0], "levels": [500.0], "variables": ["t2m", "t"]}
    return [{"root": [root / "files", root / "store"], **split, **cut, **kinds}]


WRITERS = {
    "robonet": write_robonet,
    "sevir": write_sevir,
    "timeseries": write_series,
    "bair": write_bair,
    "arrays": write_arrays,
    "turbulence": write_turbulence,
    "well": write_wells,
    "radar_h5": write_radars,
    "lerobot": write_episodes,
    "weather": write_globe,
    "pdebench": write_fields,
}


def words_of(options):
    """As a shell hands them over."""
    words = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        words += [option] if value is True else [option, *map(str, values)]
    return words


def config_of(kind, options):
    parser = argparse.ArgumentParser()
    add_options(parser, kind.config)
    return read_options(parser.parse_args(words_of(options)), kind.config)


def is_section(kind, name):
    annotation = kind.config.model_fields[name].annotation
    return isinstance(annotation, type) and issubclass(annotation, StrictConfig)


def files(folder):
    """Bytes of what a reader sees, by name."""
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.suffix in (".tar", ".json")
    }


def test_there_are_inputs_for_every_source():
    shipped = {name for name, kind in SOURCES.items() if kind.source.__module__.startswith("dydiff_dist.data.sources")}
    assert shipped == set(WRITERS)


@pytest.mark.long
@pytest.mark.parametrize("source", list(WRITERS))
def test_all_options_give_the_same_bytes_in_several_processes(tmp_path, source):
    kind = SOURCES[source]
    (tmp_path / "inputs").mkdir()
    untried = {
        name
        for name, field in kind.config.model_fields.items()
        if not field.is_required() and not is_section(kind, name)
    }
    for number, options in enumerate(WRITERS[source](tmp_path / "inputs")):
        config = config_of(kind, options)
        default = kind.config.model_fields
        untried -= {name for name in untried if getattr(config, name) != default[name].default}
        made = kind.source(config)
        convert(made, tmp_path / f"{number}-one", num_processes=1)
        convert(made, tmp_path / f"{number}-two", num_processes=2)
        one, two = files(tmp_path / f"{number}-one"), files(tmp_path / f"{number}-two")
        assert one == two and sum(path.suffix == ".tar" for path in one) > 2
    assert not untried
