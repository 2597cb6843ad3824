"""Every file that is read back, damaged at random: whatever is wrong is one line, nothing hangs, nothing passes for
what it was.

About 650 damages are done in every run of the tests, 27,000 in the long one (``-m long``). A file that is sealed (by a
checksum in it, or in the document that names it) must give what it gave, or an error. Not sealed are what a person
writes: a run's configuration, an ``.npy`` of histories, weights from elsewhere. ``forged`` is what somebody means to
be read: documents changed and sealed again. Of those a reader may take other content, but there is neither a traceback
nor a hang. How many damages ended in which way stands below pytest's results (``tests/conftest.py``), with ``-v`` for
each file.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import DAMAGES, Target, change_json, forge_json

from dydiff_dist.arrays import read_safetensors
from dydiff_dist.autoencoders import AutoencoderModelConfig, build_network, load_autoencoder, save_autoencoder
from dydiff_dist.autoencoders.files import load_network
from dydiff_dist.autoencoders.networks import NetworkFiles
from dydiff_dist.checkpoints import folder as checkpoint_folder
from dydiff_dist.checkpoints.folder import CheckpointReader
from dydiff_dist.data.convert import ShardRecord, convert
from dydiff_dist.data.manifest import FrameSchema, ShardIndex, manifest_identity, parse_document, read_document
from dydiff_dist.data.shard_set import ShardSet, decode_sample
from dydiff_dist.data.sources.arrays import ArraysSource, ArraysSourceConfig
from dydiff_dist.evaluation import evaluate
from dydiff_dist.evaluation.colors import field_style
from dydiff_dist.evaluation.html_report import write_report, write_strips
from dydiff_dist.evaluation.score_files import DRAWS_NAME, SCORES_NAME, STRIPS_NAME, ScoredRun, write_scores
from dydiff_dist.files import TensorSpec, file_order, write_json, write_tensor_file
from dydiff_dist.forecasting import ForecastRun, ForecastStore, load_forecaster, save_model
from dydiff_dist.forecasting.cases import ArrayCases
from dydiff_dist.forecasting.exported import case_data, read_description
from dydiff_dist.forecasting.frame_space import input_sizes
from dydiff_dist.forecasting.verification import Verification
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import load_config, parse_config

ORDINARY_TRIALS, LONG_TRIALS = 24, 1000

JSON_DAMAGES = [*DAMAGES, change_json, change_json, change_json]
FORGED = {"damages": [forge_json], "sealed": False}


class Files:
    """A folder of everything, small."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.shards, self.run, self.model = folder / "shards" / "train", folder / "run.json", folder / "model"
        self._write_shards()
        self._write_model()
        self.forecasts = {kind: self._forecast(kind) for kind in ("npz", "zarr")}
        self._write_scores()
        self._write_checkpoint()

    def _write_shards(self) -> None:
        (self.folder / "arrays" / "train").mkdir(parents=True)
        clips = np.random.default_rng(0).integers(0, 255, (4, 6, 1, 8, 8), dtype=np.uint8)
        np.save(self.folder / "arrays" / "train" / "clips.npy", clips)
        convert(
            ArraysSource(ArraysSourceConfig(root=str(self.folder / "arrays"), num_frames=6)), self.folder / "shards"
        )
        (self.tar,) = self.shards.glob("*.tar")
        (self.index,) = self.shards.glob("*.index.json")
        (self.record,) = (self.shards / ".records").glob("*.json")
        np.save(self.folder / "history.npy", clips[:, :2])
        np.savez(self.folder / "history.npz", history=clips[:, :2], key=np.array(list("abcd")))
        whole = ShardSet.open(self.shards)
        self.entry, self.frames = whole.manifest.shards[0], whole.schema
        with open(self.tar, "rb") as file:
            (self.folder / "sample.tar").write_bytes(file.read(whole.index(0).sizes[0]))

    def _write_model(self) -> None:
        tree = {
            "output_dir": "runs/small",
            "data": {"train": str(self.shards), "num_history_frames": 2, "num_future_frames": 4},
            "model": {"width": 8, "depth": 1, "num_heads": 2, "patch_size": 4},
            "sampling": {"num_steps": 2},
            "training": {"steps": 1, "global_batch_size": 1, "micro_batch_per_gpu": 1, "learning_rate": 1e-3},
        }
        write_json(self.run, tree)
        config, manifest = parse_config(tree, "run", RunConfig), ShardSet.open(self.shards).manifest
        self.data, self.schema = config.data, manifest.frames.model_dump(mode="json")
        self.schema |= {"shift": list(manifest.shift), "scale": list(manifest.scale)}
        torch.manual_seed(0)
        network = config.model.build(input_sizes(config.data, manifest.frames.shape, 0))
        save_model(self.model, network.state_dict(), config.model_dump(mode="json"), self.schema)

    def _forecast(self, kind: str) -> Path:
        out = self.folder / f"forecasts_{kind}"
        ForecastRun(self.model, self.shards, out, num_members=2, num_cases=3, file_format=kind, device="cpu").run()
        return out

    def _write_scores(self) -> None:
        verification = Verification.open(self.forecasts["npz"])
        self.scores = self.folder / "scores"
        write_scores(evaluate(verification.case(number) for number in range(3)), self.scores)
        write_strips([verification.case(0)], field_style(1), self.scores)

    def _write_checkpoint(self) -> None:
        self.checkpoint = self.folder / "step_000003"
        self.checkpoint.mkdir()
        tensors = {checkpoint_folder.tensor_key("model", "weights", "w"): torch.arange(12.0)}
        specs = {key: TensorSpec(dtype=tensor.dtype, shape=tuple(tensor.shape)) for key, tensor in tensors.items()}
        path = self.checkpoint / checkpoint_folder.rank_file(0)
        record = write_tensor_file(path, specs, (tensors[key] for key in file_order(specs)))
        checkpoint_folder.write_marker(self.checkpoint, 0, record, {"model": {"w": [0, 12, 3]}})
        engines = {"model": {"shapes": {"w": [3, 4]}, "kinds": ["weights"], "buffers": []}}
        checkpoint_folder.seal(self.checkpoint, {"config": {"width": 16}}, engines, 1)

    def read_shards(self) -> tuple:
        shards = ShardSet.open(self.shards, check="none")
        samples = [shards.read(shards.address(number), with_extras=True) for number in range(len(shards))]
        return manifest_identity(shards.manifest), [(sample.key, sample.frames.tobytes()) for sample in samples]

    def read_forged_index(self) -> None:
        parse_document(self.index.read_bytes(), ShardIndex, "index").check_fits(self.entry, "index")

    def read_sample(self) -> bytes:
        data = (self.folder / "sample.tar").read_bytes()
        return decode_sample(data, "train-clips-00000-00000", self.frames, "sample").frames.tobytes()

    def read_cases(self, kind: str) -> list:
        store = ForecastStore.open(self.forecasts[kind])
        cases = [(case, *store.read(case)) for case in store.cases()]
        return [store.request, [(case, key, members.tobytes()) for case, key, members in cases]]

    def read_request(self) -> tuple:
        store = ForecastStore.open(self.forecasts["npz"])
        return store.request, store.cases(), store.request.shape_MSCHW

    def read_model(self) -> tuple:
        weights = load_forecaster(self.model, device="cpu").network.state_dict()
        return read_description(self.model), _digest(weights)

    def read_model_description(self) -> tuple:
        description, sha256 = read_description(self.model)
        return case_data(description, self.model), description.data_schema, sha256

    def read_histories(self, name: str) -> list:
        cases = ArrayCases(self.folder / name, self.data, self.schema)
        read = [cases.read(number) for number in range(len(cases))]
        return [(case.key, case.history.tobytes()) for case in read]

    def read_scores(self) -> list:
        run = ScoredRun("run", self.scores)
        draws = {name: values.tobytes() for name, values in run.draws("forecast").items()}
        return [run.summary(), run.shown_cases(STRIPS_NAME), draws]

    def read_checkpoint(self) -> bytes:
        damaged = checkpoint_folder.damaged_files(self.checkpoint)
        if damaged:
            raise ValueError("; ".join(damaged))
        return CheckpointReader(self.checkpoint).read_whole("model", "weights", "w").numpy().tobytes()

    def targets(self) -> list[Target]:
        manifest, forecast = self.shards / "manifest.json", self.forecasts["npz"] / "forecast.json"
        config, weights = self.model / "config.json", self.model / "model.safetensors"
        scores, cases = self.scores / SCORES_NAME, sorted(self.forecasts["npz"].glob("*.npz"))
        of_checkpoint = [path for path in self.checkpoint.iterdir() if path.suffix == ".json"]
        chunks = [path for path in self.forecasts["zarr"].rglob("*") if path.is_file() and path.name != "forecast.json"]
        json_of = {"damages": JSON_DAMAGES}

        def forged_scores() -> dict:
            write_report([ScoredRun("run", self.scores), ScoredRun("again", self.scores)], self.folder / "report.html")
            return ScoredRun("run", self.scores).summary()

        return [
            Target(
                "run configuration", [self.run], lambda: load_config(self.run, RunConfig), JSON_DAMAGES, sealed=False
            ),
            Target("manifest", [manifest], self.read_shards, **json_of),
            Target("manifest forged", [manifest], self.read_shards, **FORGED),
            Target("index", [self.index], self.read_shards, **json_of),
            Target("index forged", [self.index], self.read_forged_index, **(FORGED | {"damages": [change_json]})),
            Target("record", [self.record], lambda: read_document(self.record, ShardRecord), **json_of),
            Target("tar", [self.tar], self.read_shards),
            Target("tar without checksums", [self.folder / "sample.tar"], self.read_sample, sealed=False),
            Target("model", [config], self.read_model, **json_of),
            Target("model forged", [config], self.read_model_description, **FORGED),
            Target("weights", [weights], self.read_model),
            Target("weights alone", [weights], lambda: _digest(read_safetensors(weights)), sealed=False),
            Target(
                "history npy", [self.folder / "history.npy"], lambda: self.read_histories("history.npy"), sealed=False
            ),
            Target("history npz", [self.folder / "history.npz"], lambda: self.read_histories("history.npz")),
            Target("forecast.json", [forecast], self.read_request, **json_of),
            Target("forecast.json forged", [forecast], self.read_request, **FORGED),
            Target("cases npz", cases, lambda: self.read_cases("npz")),
            Target("cases zarr", chunks, lambda: self.read_cases("zarr"), **json_of_any()),
            Target("scores", [scores, self.scores / STRIPS_NAME], self.read_scores, **json_of),
            Target("draws", [self.scores / DRAWS_NAME], self.read_scores),
            Target("scores forged", [scores, self.scores / STRIPS_NAME], forged_scores, **FORGED),
            Target("checkpoint documents", of_checkpoint, self.read_checkpoint, **json_of),
            Target(
                "checkpoint", [p for p in self.checkpoint.iterdir() if p not in of_checkpoint], self.read_checkpoint
            ),
        ]


def json_of_any() -> dict:
    """Damages of files that may be JSON or not."""

    def change_if_json(data: bytes, rng) -> bytes:
        return change_json(data, rng) if data.startswith(b"{") else rng.choice(DAMAGES)(data, rng)

    return {"damages": [*DAMAGES, change_if_json, change_if_json]}


def _digest(tensors: dict[str, torch.Tensor]) -> list:
    return [
        (name, t.dtype, t.shape, hashlib.sha256(t.numpy().tobytes()).digest()) for name, t in sorted(tensors.items())
    ]


def _autoencoder_targets(folder: Path) -> list[Target]:
    """Small and senseless, but exactly defined; of diffusers, which is an extra."""
    pytest.importorskip("diffusers", reason="autoencoders need diffusers: pip install 'dydiff_dist[latents]'")
    config = AutoencoderModelConfig(
        latent_channels=1, channels=(4,), layers_per_block=1, norm_groups=2, mid_attention=False
    )
    save_autoencoder(
        folder,
        build_network(config, num_channels=1, frame_size=8),
        frames=FrameSchema(num_frames=6, shape=(1, 8, 8), dtype="uint8"),
        pixel_shift=(127.5,),
        pixel_scale=(127.5,),
        latent_channels=1,
        spatial_ratio=config.spatial_ratio,
        latent_shift=(0.0,),
        latent_scale=(1.0,),
    )

    def read() -> tuple:
        autoencoder = load_autoencoder(folder)
        return autoencoder.description, _digest(autoencoder.network.state_dict())

    description, files = (
        folder / "autoencoder.json",
        NetworkFiles(folder / "config.json", folder / "diffusion_pytorch_model.safetensors"),
    )
    return [
        Target("autoencoder", [description], read, JSON_DAMAGES),
        Target("autoencoder files", [files.config, files.weights], read),
        Target("autoencoder forged", [description], read, **FORGED),
        Target(
            "network from elsewhere", [files.config, files.weights], lambda: load_network(files) and None, sealed=False
        ),
    ]


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> dict[str, Target]:
    found = Files(tmp_path_factory.mktemp("files")).targets()
    return {target.name: target for target in found}


@pytest.fixture(scope="module")
def autoencoder_targets(tmp_path_factory) -> dict[str, Target]:
    return {target.name: target for target in _autoencoder_targets(tmp_path_factory.mktemp("autoencoder"))}


AUTOENCODER_NAMES = ("autoencoder", "autoencoder files", "autoencoder forged", "network from elsewhere")
NAMES = (
    "run configuration, manifest, manifest forged, index, index forged, record, tar, tar without checksums, model, "
    "model forged, weights, weights alone, history npy, history npz, forecast.json, forecast.json forged, cases npz, "
    "cases zarr, scores, draws, scores forged, checkpoint documents, checkpoint"
).split(", ")


REBUILT = ("index",)
"""What a reader makes anew from the other files, so that no damage need be refused."""


@pytest.fixture
def target(request, name: str) -> Target:
    """The one that a test's ``name`` says."""
    fixture = "autoencoder_targets" if name in AUTOENCODER_NAMES else "targets"
    return request.getfixturevalue(fixture)[name]


@pytest.mark.parametrize("name", [*NAMES, *AUTOENCODER_NAMES])
def test_damage_is_refused_in_one_line_or_makes_no_difference(target, record_property):
    counts = target.damage_often(range(ORDINARY_TRIALS))
    record_property("damage", (target.name, dict(counts)))
    assert counts.total() == ORDINARY_TRIALS and (counts["refused"] > 0 or target.name in REBUILT)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", [*NAMES, *AUTOENCODER_NAMES])
def test_much_damage(target, record_property):
    counts = target.damage_often(range(ORDINARY_TRIALS, ORDINARY_TRIALS + LONG_TRIALS))
    record_property("damage", (target.name, dict(counts)))
    assert counts.total() == LONG_TRIALS and (counts["refused"] > 0 or target.name in REBUILT)


def test_every_file_is_among_them(targets):
    assert sorted(targets) == sorted(NAMES)
