"""The configuration builds the process; older files are read as before; mistakes are one line."""

import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dydiff_dist.diffusion import DiffusionConfig, build_process
from dydiff_dist.strict_config import describe_error


def test_builds_from_json():
    config = DiffusionConfig.model_validate_json(
        '{"num_timesteps": 3, "gamma_schedule": [1.0, 0.5, 0.1], "prediction": "v", "min_snr": 5.0}'
    )
    d = config.build()
    assert d.table.frame_gamma.tolist() == [1.0, 0.5, 0.1]
    assert torch.equal(d.table.target_noise, d.table.signal)
    snr = (d.table.signal / d.table.noise).square()
    torch.testing.assert_close(d.objective.weights, snr.clamp(max=5) / (snr + 1), rtol=1e-12, atol=0)


def test_a_process_is_built_as_from_its_configuration():
    fields = {"process": "flow_matching", "mixes": "noise", "num_timesteps": 7, "gamma_ratio": 0.3}
    built, configured = build_process(**fields).table, DiffusionConfig(**fields).build().table
    for name in ("signal", "noise", "frame_gamma", "noise_gamma", "target_noise", "target_signal"):
        assert torch.equal(getattr(built, name), getattr(configured, name))


def test_what_is_stored_is_read_again():
    for process in ("dydiff", "standard", "flow_matching", "edm"):
        config = DiffusionConfig(process=process, num_timesteps=4, gamma_schedule=np.array([1.0, 0.9, 0.8, 0.7]))
        assert DiffusionConfig.model_validate_json(config.model_dump_json()) == config


def test_normalisation_takes_the_datas_autocovariance():
    config = DiffusionConfig(normalize_input=True)
    assert config.build(frame_autocovariance=[1.0, 0.9]).table.input_std.shape == (1000,)
    with pytest.raises(ValueError, match="needs frame_autocovariance"):
        config.build()


@pytest.mark.parametrize(
    ("process", "prediction"), [("dydiff", "eps"), ("standard", "eps"), ("flow_matching", "velocity"), ("edm", "edm")]
)
@pytest.mark.parametrize("left_out", ["", ', "prediction": null'])
def test_a_prediction_left_out_is_stored_as_the_process_own(process, prediction, left_out):
    config = DiffusionConfig.model_validate_json(f'{{"process": "{process}"{left_out}}}')
    assert config.prediction == prediction
    assert f'"prediction":"{prediction}"' in config.model_dump_json()


@pytest.mark.parametrize(
    ("older", "today"),
    [
        ("{}", {}),
        ('{"dependent_noise": true, "prediction": "v"}', {"prediction": "v"}),
        ('{"dependent_noise": false}', {"process": "dydiff_independent"}),
        ('{"beta_start": null, "beta_end": null, "beta_schedule": "linear"}', {"beta_schedule": "linear"}),
    ],
)
def test_older_configurations_are_read_as_before(older, today):
    config = DiffusionConfig.model_validate_json(older)
    assert config == DiffusionConfig(**today)
    assert not {"dependent_noise", "beta_start"} & set(config.model_dump())


def described(text):
    with pytest.raises(ValidationError) as error:
        DiffusionConfig.model_validate_json(text)
    return describe_error(error.value, DiffusionConfig)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"gamma_ration": 0.5}', "did you mean 'gamma_ratio'"),
        ('{"gamma_ratio": 2}', "gamma_ratio is 2"),
        ('{"zero_terminal_snr": true}', "use prediction 'v' or 'x0'"),
        ('{"gamma_schedule": [0.5]}', r"shape \(1,\)"),
        ('{"gamma_schedule": "linear"}', "gamma_schedule"),
        ('{"beta_start": 0.001}', "beta_start"),
        ('{"dependent_noise": 1}', "dependent_noise is 1; it is true or false in older files"),
        ('{"dependent_noise": false, "process": "standard"}', "leave it out"),
    ],
)
def test_mistakes_are_one_line(text, words):
    message = described(text)
    assert "\n" not in message
    assert re.search(words, message)


@pytest.mark.parametrize(
    ("name", "value", "processes"),
    [
        ("beta_schedule", "linear", ("flow_matching", "edm")),
        ("zero_terminal_snr", True, ("flow_matching", "edm")),
        ("snr_factor", 4.0, ("flow_matching", "edm")),
        ("sigma_min", 0.01, ("dydiff", "dydiff_independent", "standard", "correlated_noise", "flow_matching")),
        ("sigma_max", 20.0, ("dydiff", "dydiff_independent", "standard", "correlated_noise", "flow_matching")),
        ("sigma_data", 0.5, ("dydiff", "dydiff_independent", "standard", "correlated_noise", "flow_matching")),
    ],
)
def test_a_field_without_effect_is_refused_and_one_with_effect_has_it(name, value, processes):
    def columns(**fields):
        table = build_process(prediction="v", **fields).table
        return torch.stack([table.signal, table.noise, table.input_std if table.input_std is not None else table.noise])

    for process in ("dydiff", "dydiff_independent", "standard", "correlated_noise", "flow_matching", "edm"):
        if process in processes:
            with pytest.raises(ValueError, match=f"^{name} is .*process '{process}' .* leave it out"):
                build_process(process=process, prediction="v", **{name: value})
        else:
            assert not torch.equal(columns(process=process), columns(process=process, **{name: value}))


def test_sigma_data_of_edms_prediction_has_an_effect_with_any_process():
    targets = [build_process(process="standard", prediction="edm", sigma_data=s).table.target_noise for s in (0.5, 1)]
    assert not torch.equal(*targets)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gamma_ration": 0.5}, "unknown key 'gamma_ration'; did you mean 'gamma_ratio'"),
        ({"num_timesteps": 1}, "num_timesteps is 1: input should be greater than or equal to 2"),
        ({"num_timesteps": "1000"}, "num_timesteps is '1000': input should be a valid integer"),
        ({"beta_schedule": "cosin"}, "beta_schedule is 'cosin': input should be 'cosine', 'linear' or 'scaled_linear'"),
        ({"gamma_schedule": "linear"}, "gamma_schedule.* is 'linear'"),
        ({"gamma_ratio": 1.5}, "gamma_ratio is 1.5: input should be less than or equal to 1"),
        ({"gamma_schedule": [0.5, 0.5]}, r"shape \(2,\)"),
        ({"num_timesteps": 2, "gamma_schedule": [0.5, 0.0]}, r"outside \(0, 1\]"),
        ({"num_timesteps": 2, "gamma_schedule": [0.5, float("nan")]}, r"outside \(0, 1\]"),
        ({"process": "dydif"}, "^process is 'dydif'; did you mean 'dydiff'"),
        ({"process": "brownian_bridge"}, "^process is 'brownian_bridge'; choose one of dydiff, dydiff_independent"),
        ({"prediction": "epsilon"}, "^prediction is 'epsilon'; .*eps, v, x0"),
        ({"prediction": "velocty"}, "^prediction is 'velocty'; did you mean 'velocity'"),
        ({"mixes": "frames"}, "^mixes is 'frames', and process 'dydiff' says itself what is mixed"),
        ({"process": "edm", "sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min is 3.0 and sigma_max 2.0"),
        ({"zero_terminal_snr": True, "prediction": "eps"}, "use prediction 'v' or 'x0'"),
        ({"process": "flow_matching", "prediction": "eps"}, "timestep 999 the target says nothing of the frames"),
        ({"loss_space": "unmixed", "gamma_ratio": 1.0, "prediction": "v"}, "use loss_space 'mixed'"),
        ({"network_space": "unmixed", "process": "correlated_noise"}, "needs frames and noise mixed alike"),
        ({"normalize_input": True}, "needs frame_autocovariance"),
        ({"normalize_input": True, "frame_autocovariance": [[1.0, 0.5]]}, r"shape \(1, 2\)"),
        ({"normalize_input": True, "process": "edm"}, "scales its input already"),
        ({"timestep_density": (0.0, 0.0)}, "timestep_density is .0.0, 0.0.; give a mean and a deviation above 0"),
        ({"timestep_density": (float("nan"), 1.0)}, "timestep_density is .nan, 1.0.; give a mean"),
        ({"min_snr": 0.0}, "min_snr is 0.0: input should be greater than 0"),
        ({"snr_factor": 0.0}, "snr_factor is 0.0: input should be greater than 0"),
        ({"dependent_noise": None}, "dependent_noise is None"),
        ({"beta_start": 0.1}, "unknown key 'beta_start'"),
        ({"backend": "cuda"}, "backend is 'cuda'; choose one of auto, triton, cpp, reference"),
    ],
)
def test_mistakes_in_python_are_one_line_without_pydantics_own_text(fields, words):
    with pytest.raises(ValueError, match=words) as error:
        build_process(**fields)
    assert not isinstance(error.value, ValidationError)
    for foreign in ("\n", "pydantic", "validation error", "Value error", "type="):
        assert foreign not in str(error.value)
