"""FVD with small extractors that are scripted here: how they are called, what is refused, what the score is."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.evaluation import ForecastCase, evaluate
from dydiff_dist.evaluation.choice import VIDEO_PRESETS, ForecastKind, choose_suites
from dydiff_dist.evaluation.fvd import ClipExtractor, Fvd, FvdProtocol, frechet_distance
from dydiff_dist.evaluation.score_files import summary

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class LikeI3D(torch.nn.Module):
    """Takes the arguments of the field's I3D file, and refuses clips that are too short as that one does."""

    def __init__(self):
        super().__init__()
        weight = (
            np.random.RandomState(0).normal(size=(6, 3, 3, 8, 8)).astype(np.float32) / 20
        )  # numpy's frozen generator
        self.register_buffer("weight", torch.from_numpy(weight))

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if rescale:
            x = x / 127.5 - 1
        if resize:
            n, c, s, h, w = x.shape
            flat = x.transpose(1, 2).reshape(n * s, c, h, w)
            flat = torch.nn.functional.interpolate(flat, size=[16, 16], mode="bilinear", align_corners=False)
            x = flat.reshape(n, s, c, 16, 16).transpose(1, 2)
        hidden = torch.tanh(torch.nn.functional.conv3d(x, self.weight, stride=[1, 8, 8]))
        features = hidden.mean(dim=2).flatten(1)
        return features if return_features else features.softmax(dim=1)


class Plain(torch.nn.Module):
    """A network of another kind, without flags."""

    def forward(self, clips):
        return torch.stack([clips.amin(dim=(1, 2, 3, 4)), clips.amax(dim=(1, 2, 3, 4))], dim=1)


def _saved(module: torch.nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


@pytest.fixture(scope="module")
def i3d(tmp_path_factory) -> Path:
    return _saved(LikeI3D(), tmp_path_factory.mktemp("i3d") / "i3d.pt")


def _case(number: int, num_members: int = 3, num_channels: int = 3) -> ForecastCase:
    rng = np.random.RandomState(number)
    history, truth = rng.uniform(0, 255, (2, num_channels, 12, 10)), rng.uniform(0, 255, (4, num_channels, 12, 10))
    members = truth + rng.normal(0, 60, (num_members, 4, num_channels, 12, 10))
    return ForecastCase(number, f"k{number}", history, truth, members)


def test_the_score_is_the_distance_of_directly_calculated_features(i3d) -> None:
    cases = [_case(number) for number in range(9)]
    evaluation = evaluate(cases, fvd=Fvd(ClipExtractor(i3d), FvdProtocol()))
    network = LikeI3D()

    def direct(clips: list[np.ndarray]) -> np.ndarray:
        levels = torch.from_numpy(np.rint(np.clip(np.stack(clips), 0, 255)).astype(np.float32)).transpose(1, 2)
        return network(levels, True, True, True).numpy()

    real = direct([np.concatenate([c.history, c.truth]) for c in cases])
    forecast = direct([np.concatenate([c.history, member]) for c in cases for member in c.members])
    # float32 convolutions in other batches
    assert evaluation.fvd("forecast") == pytest.approx(frechet_distance(real, forecast), rel=1e-4)
    assert evaluation.fvd("forecast") < evaluation.fvd("persistence")


def test_golden_value(i3d) -> None:
    """Fixed frames through fixed weights: this number changes only if the protocol does."""
    evaluation = evaluate((_case(number) for number in range(9)), fvd=Fvd(ClipExtractor(i3d), FvdProtocol()))
    assert evaluation.fvd("forecast") == pytest.approx(0.239319937, rel=1e-5)  # float32 convolutions on another machine


def test_the_protocol_is_complete_and_written_beside_the_score(i3d) -> None:
    forecast_only = FvdProtocol(include_history=False)
    record = summary(evaluate([_case(0), _case(1)], fvd=Fvd(ClipExtractor(i3d), forecast_only)))
    protocol, score = record["protocol"], record["scores"]["forecast"]["fvd"]
    assert protocol["fvd"] == {
        "include_history": False,
        "covariance_divisor": "n",
        "extractor_sha256": hashlib.sha256(i3d.read_bytes()).hexdigest(),
        "resize": "by the extractor",
        "rescale": "by the extractor, from 0..255",
        "features": "return_features=True",
        "called": "by keyword 'x', no fused kernels, float32",
        "num_frames": 4,
        "values": "clipped to the data's range, rounded to 256 levels, never through a video file",
        "real_clips": "the truth of every scored case, once",
    }
    assert (score["num_real"], score["num_forecast"], protocol["num_members"]) == (2, 6, 3)
    assert record["scores"]["persistence"]["fvd"]["num_forecast"] == 2


def test_features_do_not_depend_on_the_order_of_cases(i3d) -> None:
    fvd = Fvd(ClipExtractor(i3d), FvdProtocol())
    forward, backward = (evaluate((_case(n) for n in order), fvd=fvd) for order in (range(5), (4, 2, 0, 1, 3)))
    assert forward.fvd("forecast") == backward.fvd("forecast")


def test_a_network_without_flags_gets_frames_resized_and_scaled(tmp_path) -> None:
    extractor = ClipExtractor(_saved(Plain(), tmp_path / "plain.pt"), size_pixels=32)
    features = extractor(np.array([0.0, 255.0] * 6).reshape(1, 2, 1, 2, 3))
    assert features.tolist() == [[-1.0, 1.0]]
    assert extractor.protocol()["resize"] == "bilinear to 32x32, no antialiasing"
    assert extractor.protocol()["called"] == "by keyword 'clips', no fused kernels, float32"


def test_a_single_case_has_no_fvd(i3d) -> None:
    record = summary(evaluate([_case(0, num_members=1)], fvd=Fvd(ClipExtractor(i3d), FvdProtocol())))
    assert np.isnan(record["scores"]["forecast"]["fvd"]["overall"])


def _raises(error: type[Exception], message: str):
    return pytest.raises(error, match=re.escape(message))


def test_files_that_are_not_what_they_should_be_are_refused_before_they_run(i3d, tmp_path) -> None:
    with _raises(FileNotFoundError, "none.pt does not exist; give the TorchScript file of an I3D network"):
        ClipExtractor(tmp_path / "none.pt")
    with _raises(ValueError, f"pinned is {'0' * 64}; it was not loaded"):
        ClipExtractor(i3d, sha256="0" * 64)
    assert ClipExtractor(i3d, sha256=hashlib.sha256(i3d.read_bytes()).hexdigest().upper())
    (tmp_path / "text.pt").write_text("no network")
    with _raises(ValueError, "text.pt is not a TorchScript file"):
        ClipExtractor(tmp_path / "text.pt")
    with _raises(ValueError, "refuses clips of shape (1, 3, 2, 12, 10)"):
        ClipExtractor(i3d)(np.zeros((1, 2, 3, 12, 10)))


def test_presets_name_what_differs() -> None:
    def choose(preset="robonet-64", dtype="uint8", shape=(10, 3, 64, 64), num_history: int = 2, num_members: int = 100):
        schema = FrameSchema(num_frames=12, shape=shape[1:], dtype=dtype, channels=("red", "green", "blue"))
        counts = {"num_history_frames": num_history, "num_members": num_members}
        return choose_suites(None, preset, ForecastKind(schema=schema, shape=shape, periodic=False, **counts))

    assert [suite.name for suite in choose()] == ["ensemble", "calibration", "spectrum", "image"]
    with _raises(ValueError, "preset 'robonet-64' asks for samples per context 100, these forecasts have 8"):
        choose(num_members=8)
    with _raises(ValueError, "preset 'robonet-64' asks for frames 2 and 10, these forecasts have 1 and 10"):
        choose(num_history=1)
    with _raises(ValueError, "preset 'robonet-64' asks for size 64 and 64, these forecasts have 32 and 32"):
        choose(shape=(10, 3, 32, 32))
    with _raises(ValueError, "preset 'cascast' is of rain scores, these data have none"):
        choose(preset="cascast")
    with _raises(ValueError, "needs 8-bit frames of 1 or 3 channels, these are float32 of 3"):
        choose(dtype="float32")
    assert all(preset.lpips_network == "vgg" for preset in VIDEO_PRESETS.values())
