"""Pictures: the shown quantity, its colours, and files of the right form."""

import numpy as np
import pytest
from PIL import Image

from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.evaluation import Climatology, ForecastCase, baselines, evaluate, format_table
from dydiff_dist.evaluation.animation import forecast_animation
from dydiff_dist.evaluation.colors import FORECASTERS, field_style, style_of, vorticity
from dydiff_dist.evaluation.figures import forecast_figure, save_figure, score_figure
from dydiff_dist.evaluation.score_tables import format_more_scores


def _case(num_channels: int = 2, num_members: int = 3) -> ForecastCase:
    rng = np.random.default_rng(0)
    shapes = ((2,), (5,), (num_members, 5))
    return ForecastCase(3, "k3", *(rng.uniform(0, 255, (*shape, num_channels, 16, 24)) for shape in shapes))


STYLES = {
    "velocity": (2, {"vector_channels": (0, 1), "periodic": True}),
    "images": (3, {"dtype": "uint8"}),
    "rain": (1, {"channels": ("vil",)}),
    "other": (4, {"channels": ("temperature", "b", "c", "d")}),
}


@pytest.mark.parametrize("periodic", [True, False])
def test_vorticity_of_solid_rotation_is_twice_its_rate(periodic: bool) -> None:
    rows, columns = np.meshgrid(np.arange(9.0), np.arange(9.0), indexing="ij")
    rotation = np.stack([-0.3 * rows, 0.3 * columns])  # u along W, v along H
    inner = vorticity(rotation, 0, 1, periodic)[2:-2, 2:-2]
    np.testing.assert_allclose(inner, 0.6, rtol=1e-12)
    np.testing.assert_allclose(vorticity(rotation[::-1], 1, 0, periodic)[2:-2, 2:-2], 0.6, rtol=1e-12)


def test_periodic_vorticity_sees_no_edge() -> None:
    wave = np.sin(2 * np.pi * np.arange(32) / 32)
    frame = np.stack([np.zeros((32, 32)), np.broadcast_to(wave, (32, 32))])
    shifted = vorticity(np.roll(frame, 5, axis=2), 0, 1, True)
    np.testing.assert_allclose(shifted, np.roll(vorticity(frame, 0, 1, True), 5, axis=1), atol=1e-15)


def test_styles_follow_what_the_shards_say() -> None:
    quantities = {name: field_style(count, **facts).quantity for name, (count, facts) in STYLES.items()}
    assert quantities == {"velocity": "vorticity", "images": "colour", "rain": "VIL", "other": "temperature"}


def test_images_keep_their_colours_and_are_clipped() -> None:
    style = field_style(3, dtype="uint8")
    frame = np.array([0.0, 128.0, 300.0]).reshape(3, 1, 1)
    assert style.rgb(style.show(frame), style.limits(frame)).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize(
    ("facts", "values"),
    [
        ({"dtype": "float32"}, (0.0, 0.5, 2.0)),  # floats from 0 to 1
        ({"dtype": "float32", "bounds": ((-1, 1),) * 3}, (-1.0, 0.0, 1.5)),
        ({"dtype": "uint16"}, (0.0, 32767.5, 65535.0)),
    ],
)
def test_channels_called_red_green_and_blue_are_a_picture_whatever_their_type(facts: dict, values: tuple) -> None:
    schema = FrameSchema(num_frames=2, shape=(3, 1, 1), channels=("red", "green", "blue"), **facts)
    style = style_of(schema, is_cropped=False)
    frame = np.array(values).reshape(3, 1, 1)
    assert style.quantity == "colour"
    assert style.rgb(style.show(frame), style.limits(frame)).tolist() == [[[0, 128, 255]]]
    named = schema.model_copy(update={"channels": ("vil", "ir069", "ir107"), "dtype": "uint8"})
    assert style_of(named, is_cropped=False).quantity == "vil"  # three quantities are no colours


def test_a_constant_field_has_limits() -> None:
    style = field_style(1, channels=("vil",))
    low, high = style.limits(np.zeros((4, 4)))
    assert low < high


@pytest.mark.parametrize("name", STYLES)
def test_picture_and_animation(name: str, tmp_path) -> None:
    num_channels, facts = STYLES[name]
    case, style = _case(num_channels), field_style(num_channels, **facts)
    with Image.open(save_figure(forecast_figure(case, style), tmp_path / "f.png")) as picture:
        assert picture.width > picture.height / 2
    with Image.open(forecast_animation(case, style, tmp_path / "f.gif", panel_pixels=96)) as animation:
        assert animation.n_frames == 7 and animation.info["loop"] == 0
        assert animation.size == (3 * 96 + 4 * 8, 28 + 64 + 28)
        animation.seek(6)
        assert animation.info["duration"] == 880  # it rests on the last frame


def test_a_forecast_of_one_member_and_one_frame_can_be_pictured(tmp_path) -> None:
    case = _case(num_members=1)
    short = ForecastCase(0, "k", case.history, case.truth[:1], case.members[:, :1])
    figure = forecast_figure(short, field_style(2, vector_channels=(0, 1)))
    assert save_figure(figure, tmp_path / "f.png").stat().st_size > 1000


def test_curves_show_every_forecaster(tmp_path) -> None:
    climatology = Climatology(lambda number: _case().truth, 4)
    figure = score_figure(evaluate([_case()], climatology))
    assert [len(axis.lines) for axis in figure.axes] == [3, 3]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "this model",
        "persistence",
        "climatology",
    ]


class _Zero(baselines.Baseline):
    name = "all_zero"

    def ensemble(self, case: ForecastCase) -> np.ndarray:
        return np.zeros((1, *case.truth.shape))

    def protocol(self) -> dict:
        return {"forecast": "0"}


def test_a_baseline_of_ones_own_stands_in_tables_and_figures(monkeypatch) -> None:
    monkeypatch.setattr(baselines, "BASELINES", {})
    baselines.register_baseline(_Zero())
    evaluation = evaluate([_case()], *baselines.BASELINES.values())
    assert "all zero" in format_table(evaluation) and "all zero" in format_more_scores(evaluation)
    legend = score_figure(evaluation).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["this model", "persistence", "all zero"]
    assert FORECASTERS["all_zero"] == FORECASTERS["all_zero"]  # the same colour each time
    with pytest.raises(ValueError, match="baseline 'all_zero' is registered already"):
        baselines.register_baseline(_Zero())
    for name in ("persistence", "truth", "a/b"):
        monkeypatch.setattr(_Zero, "name", name)
        with pytest.raises(ValueError, match=f"a baseline is called {name!r}; give it a name of letters"):
            evaluate([_case()], _Zero())
