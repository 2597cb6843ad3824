"""The configuration builds the process, with the constructor's defaults and its errors."""

import inspect
import re

import pytest
from pydantic import ValidationError

from dydiff_dist.diffusion import DynamicalDiffusion
from dydiff_dist.diffusion.config import DiffusionConfig
from dydiff_dist.strict_config import describe_error


def test_fields_and_defaults_are_the_constructors():
    parameters = dict(inspect.signature(DynamicalDiffusion).parameters)
    for not_configured in ("frame_autocovariance", "backend"):
        del parameters[not_configured]
    fields = {name: field.default for name, field in DiffusionConfig.model_fields.items()}
    assert fields == {name: parameter.default for name, parameter in parameters.items()}


def test_builds_from_json():
    config = DiffusionConfig.model_validate_json(
        '{"num_timesteps": 3, "gamma_schedule": [1.0, 0.5, 0.1], "prediction": "v", "min_snr": 5.0}'
    )
    d = config.build()
    assert d.gamma_bar.tolist() == [1.0, 0.5, 0.1]
    assert d.prediction == "v"
    assert d.min_snr == 5.0


def test_normalisation_takes_the_datas_autocovariance():
    config = DiffusionConfig(normalize_input=True)
    assert config.build(frame_autocovariance=[1.0, 0.9]).input_std.shape == (1000,)
    with pytest.raises(ValueError, match="needs frame_autocovariance"):
        config.build()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"gamma_ration": 0.5}', "did you mean 'gamma_ratio'"),
        ('{"gamma_ratio": 2}', "gamma_ratio is 2"),
        ('{"zero_terminal_snr": true}', "use prediction 'v' or 'x0'"),
        ('{"gamma_schedule": [0.5]}', r"shape \(1,\)"),
        ('{"gamma_schedule": "linear"}', "gamma_schedule"),
    ],
)
def test_mistakes_are_one_line(text, words):
    with pytest.raises(ValidationError) as error:
        DiffusionConfig.model_validate_json(text)
    message = describe_error(error.value, DiffusionConfig)
    assert "\n" not in message
    assert re.search(words, message)
