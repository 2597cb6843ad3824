"""Every configuration in configs/ can be planned here, without its data, and needs what it says it needs."""

import json
import re
from pathlib import Path

import pytest
import torch
from run_commands import ROOT

from dydiff_dist.hardware import gpu_model
from dydiff_dist.planning.estimate import Cluster, RunEstimate
from dydiff_dist.planning.step_time import Assumptions
from dydiff_dist.ranks.world import World
from dydiff_dist.tasks.autoencoder_task import AutoencoderTask
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.tasks.diffusion_task import DiffusionTask
from dydiff_dist.tasks.fewstep_task import FewStepTask
from dydiff_dist.training.config import BaseRunConfig, load_config
from dydiff_dist.training.run_plan import describe, make_plan
from dydiff_dist.training.task import Task

CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.json"))}
LARGE = [name for name, path in CONFIGS.items() if '"gpu"' in path.read_text()]
ISSUED = {"robonet_xl", "robonet_xl_zero3", "robonet_xl_offload", "robonet_64", "sevir_l", "bair_b", "turbulence_b"}


def task_of(name: str) -> type[Task]:
    """What the configuration trains."""
    if name.endswith("_fewstep"):
        return FewStepTask
    return AutoencoderTask if name.startswith("vae_") else DiffusionTask


def world_of(config: BaseRunConfig) -> World:
    """Rank 0 of the machines that the configuration says it needs."""
    num_ranks = config.needs.nodes * config.needs.gpus_per_node if config.needs and config.needs.gpu else 1
    return World(rank=0, world_size=num_ranks, local_rank=0, local_world_size=1, device=torch.device("cpu"))


def test_the_large_configurations_are_there():
    assert set(LARGE) >= ISSUED


@pytest.mark.parametrize("name", CONFIGS)
def test_dry_run_without_data_or_memory(name, monkeypatch, tmp_path):
    """What --dry-run does, in this process: a real one of XL takes the same seconds and no more."""
    task = task_of(name)
    if task is AutoencoderTask:
        pytest.importorskip("diffusers", reason="autoencoders need the extra 'latents'")
    monkeypatch.chdir(tmp_path)  # where no shards are
    if task is FewStepTask:
        (tmp_path / "runs").mkdir()
        _export_new(Path(json.loads(Path(CONFIGS[name]).read_text())["init_from"]).name)
    there = list(tmp_path.iterdir())
    config = load_config(CONFIGS[name], task.config_type)
    text = describe(task(make_plan(config, world_of(config), may_lack_data=True)))
    assert "not here; as data.expect says" in text and "M parameters" in text
    assert list(tmp_path.iterdir()) == there


def _export_new(name: str) -> None:
    """What a finished run of the configuration would leave in its folder, but for the training."""
    config = load_config(CONFIGS[name], RunConfig)
    task = DiffusionTask(make_plan(config, world_of(config), may_lack_data=True))
    task.export(Path(config.output_dir) / "model", task.build_networks()["model"].state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_needs_are_what_the_planner_says(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load_config(CONFIGS[name], RunConfig)
    needs = config.needs
    cluster = Cluster(gpu=gpu_model(needs.gpu), nodes=needs.nodes, gpus_per_node=needs.gpus_per_node)
    estimate = RunEstimate(config, cluster, Assumptions())
    peak_gib = estimate.memory().peak / 2**30
    # they are written with two digits, and a change of the model of a few percent is no reason to write them anew
    assert needs.memory_gib == pytest.approx(peak_gib, rel=0.1), f"memory_gib is now {peak_gib:.2g}"
    assert needs.hours == pytest.approx(estimate.hours, rel=0.1), f"hours are now {estimate.hours:.2g}"
    assert config.training.micro_batch_per_gpu <= estimate.largest_micro_batch


def test_needs_are_printed_and_not_stored():
    config = load_config(CONFIGS["robonet_xl"], RunConfig)
    assert re.fullmatch(r"4 x 8 h100, [\d.]+ GiB per GPU, [\d.]+ h \(.*\)", str(config.needs))
    assert "needs" not in config.model_dump()
    with pytest.raises(ValueError, match=r"needs\.gpu is '' with gpus_per_node 8; give both or neither"):
        load_config(CONFIGS["robonet_xl"], RunConfig, ['needs.gpu=""'])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], "dydiff, gamma cosine (ratio 0.5), predicts v"),
        (["diffusion.network_space=unmixed"], "dydiff, gamma cosine (ratio 0.5), predicts v"),
        (["diffusion.process=standard"], "standard, predicts v"),
        (["diffusion.process=flow_matching", "diffusion.prediction=null"], "flow_matching, predicts velocity"),
        ([f"diffusion.gamma_schedule={[1.0] * 999 + [0.5]}"], "dydiff, gamma as configured, predicts v"),
        (
            ["diffusion.process=standard", "diffusion.noise_like_errors_of=regression"],
            "standard, noise like the errors of regression, predicts v",
        ),
    ],
)
def test_the_plan_names_the_process(overrides, line):
    config = load_config(CONFIGS["turbulence_small"], RunConfig, overrides)
    task = DiffusionTask(make_plan(config, world_of(config), may_lack_data=True))
    assert task.facts()["process"] == line
