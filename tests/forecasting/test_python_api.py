"""The five lines of docs/evaluation.md, run as they stand there."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from dydiff_dist.forecasting import CaseReader, ForecastRun, ForecastStore, forecast_case, load_forecaster

REPOSITORY = Path(__file__).resolve().parents[2]


def test_five_lines_from_checkpoint_to_picture(flow_model, flow_shards, tmp_path) -> None:
    code = re.search(r"```python\n(.*?)```", (REPOSITORY / "docs" / "evaluation.md").read_text(), re.S)[1]
    lines = [line for line in code.splitlines() if line and not line.startswith(("from ", "import "))]
    assert len(lines) <= 5
    code = code.replace("runs/turbulence_fewstep", str(flow_model)).replace(
        "shards/turbulence/test", str(flow_shards / "test")
    )
    exec(code.replace("forecast.png", str(tmp_path / "forecast.png")), {})
    with Image.open(tmp_path / "forecast.png") as picture:
        assert min(picture.size) > 400
        assert np.asarray(picture.convert("L")).std() > 10


def test_forecast_case_is_what_the_command_writes(flow_model, flow_shards, tmp_path) -> None:
    ForecastRun(flow_model, flow_shards / "test", tmp_path, num_members=2, num_cases=3, device="cpu").run()
    _, written = ForecastStore.open(tmp_path).read(2)
    case = CaseReader.for_model(flow_model, flow_shards / "test").read(2)
    forecast = forecast_case(load_forecaster(flow_model, device="cpu"), case, num_members=2)
    # another batch size: float32 sums in another order
    np.testing.assert_allclose(forecast.members, written, rtol=1e-4, atol=1e-4)
