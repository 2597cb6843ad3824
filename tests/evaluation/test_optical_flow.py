"""The optical-flow baseline on fields whose motion is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from dydiff_dist.evaluation import ForecastCase, evaluate
from dydiff_dist.evaluation.colors import field_style
from dydiff_dist.evaluation.optical_flow import OpticalFlow

pytest.importorskip("pysteps", reason="pysteps is not installed (pip install 'dydiff_dist[nowcast]')")
pytest.importorskip("cv2", reason="OpenCV is not installed (pip install 'dydiff_dist[nowcast]')")


def _moving(num_frames: int, velocity: tuple[float, float], size: int = 96) -> np.ndarray:
    """(S, 1, H, W): a smooth random pattern that moves by (rows, columns) a frame and wraps around."""
    noise = np.random.default_rng(0).normal(size=(size, size))
    pattern = gaussian_filter(noise, 4, mode="wrap") * 500 + 100
    frames = [shift(pattern, (velocity[0] * s, velocity[1] * s), mode="grid-wrap") for s in range(num_frames)]
    return np.stack(frames)[:, None]


def _case(frames: np.ndarray, num_given: int = 4) -> ForecastCase:
    return ForecastCase(0, "k", frames[:num_given], frames[num_given:], frames[None, num_given:])


def test_a_periodic_field_in_uniform_motion_is_followed_over_the_edge() -> None:
    case = _case(_moving(12, (1.5, -2.0)))
    forecast = OpticalFlow(lambda frames: frames[:, 0], periodic=True).ensemble(case)
    assert forecast.shape == (1, 8, 1, 96, 96)
    error, unmoved = (np.abs(x - case.truth).mean() for x in (forecast[0], case.history[-1]))
    assert error < 0.1 * unmoved


def test_what_comes_in_over_an_open_edge_keeps_its_last_value() -> None:
    case = _case(_moving(12, (0.0, 3.0)))
    forecast = OpticalFlow(lambda frames: frames[:, 0], periodic=False).ensemble(case)[0]
    assert np.isfinite(forecast).all()
    np.testing.assert_array_equal(forecast[7, 0, :, :20], case.history[-1, 0, :, :20])  # 24 columns have come in
    inner = np.abs(forecast - case.truth)[..., 10:-10, 30:-10].mean()
    assert inner < 0.15 * np.abs(case.history[-1] - case.truth)[..., 10:-10, 30:-10].mean()


def test_all_channels_move_with_the_tracer() -> None:
    frames = _moving(6, (2.0, 1.0))
    both = np.concatenate([frames, -2 * frames], axis=1)
    forecast = OpticalFlow(lambda f: f[:, 0], periodic=True).ensemble(_case(both))[0]
    np.testing.assert_allclose(forecast[:, 1], -2 * forecast[:, 0], rtol=1e-9)


def test_a_field_without_features_stays(capsys) -> None:
    dry = np.zeros((6, 1, 32, 32))
    assert not OpticalFlow(lambda frames: frames[:, 0], periodic=False).ensemble(_case(dry)).any()
    assert capsys.readouterr().out == ""  # pysteps speaks on import


def test_it_stands_in_the_table_with_its_protocol() -> None:
    case = _case(_moving(7, (1.0, 1.0)))
    flow = OpticalFlow(field_style(1, channels=("vil",)).tracer, periodic=True)
    evaluation = evaluate([case], flow)
    assert list(evaluation.tables) == ["forecast", "persistence", "optical_flow"]
    assert evaluation.tables["optical_flow"].overall("crps") < evaluation.tables["persistence"].overall("crps")
    assert evaluation.protocol["baselines"]["optical_flow"]["edges"] == "periodic"
    with pytest.raises(ValueError, match="optical flow needs at least 2 given frames"):
        flow.ensemble(_case(_moving(7, (1.0, 1.0)), num_given=1))
