"""Another network than the default, from a configuration to a forecast."""

import json
import sys

import pytest
from run_commands import TRAIN, run

from dydiff_dist.forecasting import CaseReader, forecast_case, load_forecaster
from dydiff_dist.models import UNet
from dydiff_dist.planning.launches import trace_network
from dydiff_dist.ranks.world import read_world
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.training.config import load_config
from dydiff_dist.training.run_plan import make_plan

UNET = {"network": "unet", "width": 8, "channel_multipliers": [1, 2], "num_blocks_per_level": 1, "num_heads": 2}
OVERRIDES = [f"model={json.dumps(UNET)}", "execution.checkpoint_fraction=0.5"]


@pytest.mark.slow
def test_a_unet_is_trained_exported_and_forecasts(tiny_config, tiny_shards):
    trained = run([sys.executable, TRAIN, tiny_config, *OVERRIDES])
    assert trained.returncode == 0, trained.stderr
    assert "U-Net of 8-16 channels" in trained.stdout and "validation CRPS" in trained.stdout
    folder = load_config(tiny_config, RunConfig).output_dir
    forecaster = load_forecaster(folder, device="cpu")
    assert isinstance(forecaster.network, UNet)
    case = CaseReader.for_model(folder, tiny_shards / "test").read(0)
    assert forecast_case(forecaster, case, num_members=2).members.shape == (2, *case.truth.shape)
    again = run([sys.executable, TRAIN, tiny_config, *OVERRIDES, "model.width=16"])
    assert again.returncode == 2 and "model.width = 8, the configuration says 16" in again.stderr


def moved(trace) -> int:
    return sum(launch.bytes for launch in trace.launches)


def test_a_unet_is_planned(tiny_config):
    config = load_config(tiny_config, RunConfig, OVERRIDES)
    task = DiffusionTask(make_plan(config, read_world()))
    work = task.sample_cost()
    assert work.flops == 3 * config.model.forward_flops(task.sizes) and work.tokens == 6 * 16 * 16
    whole = trace_network(load_config(tiny_config, RunConfig, OVERRIDES[:1]), task.sizes)
    halved = trace_network(config, task.sizes)
    assert halved.peak_bytes < whole.peak_bytes and moved(halved) > moved(whole)


def test_frames_that_its_levels_cannot_halve_are_refused(tiny_config):
    config = load_config(tiny_config, RunConfig, [*OVERRIDES, "model.channel_multipliers=[1,1,1,1,1,1]"])
    with pytest.raises(ValueError, match=r"frames of 16x16 are no multiple of 32, .*model\.channel_multipliers"):
        DiffusionTask(make_plan(config, read_world()))
