"""Few-step training: what is scored, with which noise, where it starts; resume, ranks, forecasts of what comes out."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_commands import ROOT, run, two_ranks
from safetensors.torch import load_file

from dydiff_dist.data.stream import TrainStream
from dydiff_dist.diffusion.ensemble_score import almost_fair_crps
from dydiff_dist.forecasting import CaseReader, find_model, forecast_case, load_forecaster, save_model
from dydiff_dist.forecasting.exported import read_description, read_weights
from dydiff_dist.ranks.world import read_world
from dydiff_dist.tasks.config import FewStepRunConfig
from dydiff_dist.tasks.fewstep_task import FewStepTask
from dydiff_dist.training.config import load_config, parse_config
from dydiff_dist.training.run_plan import make_plan

TRAIN_FEWSTEP = ROOT / "tools" / "train_fewstep.py"


@pytest.fixture
def tree(tiny_config) -> dict:
    """The tiny run as one of few steps: two steps with noise between them, three members."""
    tree = json.loads(tiny_config.read_text())
    tree["sampling"] = {"num_steps": 2, "spacing": "trailing"}
    tree["score"] = {"pool_weights": [1.0, 0.5]}
    tree["training"] |= {"num_members": 3}
    return tree


@pytest.fixture
def config(tree, tmp_path) -> Path:
    path = tmp_path / "fewstep.json"
    path.write_text(json.dumps(tree))
    return path


def make_task(tree) -> FewStepTask:
    return FewStepTask(make_plan(parse_config(tree, "fewstep.json", FewStepRunConfig), read_world()))


def first_batch(task):
    return next(iter(TrainStream(task.plan.train_shards, task.config.data, 0, 4, 4)))


def random_weights(task) -> dict[str, torch.Tensor]:
    """Of a network whose output depends on its noise, which new weights don't."""
    torch.manual_seed(1)
    network = task.build_networks()["model"]
    return {name: weight + 0.1 * torch.randn_like(weight) for name, weight in network.state_dict().items()}


def export(task, folder: Path) -> Path:
    """A trained model, as far as few-step training can tell."""
    task.export(folder / "model", random_weights(task))
    return folder


def test_the_loss_is_the_score_of_what_the_model_will_forecast(tree, tiny_shards, tmp_path):
    """A forecast of the exported model with the training's noise, scored in the units of training."""
    tree["data"]["augmentation"] = {}
    task = make_task(tree)
    batch, weights = first_batch(task), random_weights(task)
    network = task.build_networks()["model"]
    network.load_state_dict(weights)
    (part,) = task.losses({"model": network}, batch, step=0)
    values = part.per_sample
    assert list(values) == ["loss/train", "loss/pool_1", "loss/pool_2"] and not values["loss/train"].requires_grad
    torch.testing.assert_close(values["loss/train"], values["loss/pool_1"] + 0.5 * values["loss/pool_2"])
    torch.testing.assert_close(part.loss.detach(), values["loss/train"].mean())

    forecaster = load_forecaster(save_model(tmp_path, weights, tree | _defaults(task), **task.exported_facts()))
    assert forecaster.sampling == task.config.sampling
    members = forecaster.forecast_normalized(batch["frames"][:, :2], case_index=batch["sample_index"], num_members=3)
    expected = almost_fair_crps(members, batch["frames"][:, 2:], 0.95).flatten(1).mean(1)
    # training and forecasting batch the members differently, and gradients take other kernels: float32 rounding
    torch.testing.assert_close(values["loss/pool_1"], expected, rtol=1e-5, atol=1e-6)


def _defaults(task) -> dict:
    return task.config.model_dump(mode="json")


def test_noise_is_named_by_step_sample_and_member(tree):
    """So that it is the same on any number of ranks, and new at every step."""
    task = make_task(tree)
    batch, network = first_batch(task), task.build_networks()["model"]
    network.load_state_dict(random_weights(task))
    half = {name: values[2:] for name, values in batch.items()}

    def scores(batch, step):
        (part,) = task.losses({"model": network}, batch, step)
        return part.per_sample["loss/train"]

    whole = scores(batch, 5)
    torch.testing.assert_close(scores(half, 5), whole[2:], rtol=1e-5, atol=1e-6)  # float32 sums of another batch size
    assert not torch.isclose(scores(batch, 6), whole, rtol=1e-5).any()


def test_every_pass_is_recomputed_to_the_same_gradient(tree):
    """Recomputed blocks take less memory and give the gradient that kept ones give."""
    gradients = []
    for fraction in (0.0, 1.0):
        task = make_task(tree | {"execution": {"checkpoint_fraction": fraction}})
        network = task.build_networks()["model"]
        network.load_state_dict(random_weights(task))
        (part,) = task.losses({"model": network}, first_batch(task), step=0)
        gradients.append(torch.autograd.grad(part.loss, list(network.parameters())))
    for kept, recomputed in zip(*gradients, strict=True):
        assert kept.any() and torch.equal(kept, recomputed)


def test_it_starts_from_a_model_that_means_the_same(tree, tmp_path):
    folder = export(make_task(tree), tmp_path / "trained")
    task = make_task(tree | {"init_from": str(folder)})
    expected = read_weights(find_model(folder), read_description(find_model(folder))[1])
    for name, weight in task.build_networks()["model"].state_dict().items():
        assert torch.equal(weight, expected[name]), name
    with torch.device("meta"):
        assert next(task.build_networks()["model"].parameters()).is_meta  # as the printed plan counts them
    assert task.facts()["start"] == str(folder) and task.facts()["unrolled"] == "3 members of ancestral, 2 passes each"

    def refused(error: type[Exception], message: str, **changes) -> None:
        with pytest.raises(error) as caught:
            make_task(tree | {"init_from": str(folder)} | changes)
        assert message in str(caught.value)

    left_out = {name: section for name, section in tree.items() if name not in ("model", "diffusion")}
    assert make_task(left_out | {"init_from": str(folder)}).config == task.config

    refused(FileNotFoundError, "no model in", init_from=str(tmp_path))
    has = f"init_from {str(folder)!r} has "
    refused(ValueError, has + "model.depth = 1, this run has 2; let them agree", model=tree["model"] | {"depth": 2})
    refused(ValueError, has + "diffusion.prediction = 'x0', this run has 'v'", diffusion={"prediction": "v"})
    task.plan = replace(task.plan, train_shards=task.plan.train_shards.in_units((0.0, 0.0), (2.0, 2.0)))
    task.frames = replace(task.frames, plan=task.plan)
    with pytest.raises(ValueError, match=r"has data\.s(hift|cale) = \["):
        task._check_init(read_description(find_model(folder))[0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.num_members=1", "training.num_members is 1: input should be greater than or equal to 2"),
        ("training.conditioning_dropout=0.1", "training.conditioning_dropout is 0.1: input should be less than"),
        ("score.pools=[1]", "unknown key 'score.pools'; did you mean 'score.pool_weights'?"),
        ("score.pool_weights=[0]", "score has no weight above 0"),
        ("score.pool_weights=[1,1,1,1,1,1]", "score.pool_weights has 6 entries, the last of blocks of 32 pixels"),
        ("sampling.num_steps=2000", "sampling: num_steps is 2000; it must lie in 1..1000"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(config, override, message):
    with pytest.raises(ValueError) as caught:
        plan = make_plan(load_config(config, FewStepRunConfig, [override]), read_world())
        FewStepTask(plan)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def train(*arguments, launcher=(sys.executable,)) -> str:
    result = run([*launcher, TRAIN_FEWSTEP, *arguments])
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.long
@pytest.mark.distributed
def test_resumed_and_two_rank_runs_equal_the_first_and_forecast(config, tree, tiny_shards, tmp_path):
    start = export(make_task(tree), tmp_path / "trained")
    config.write_text(json.dumps(tree | {"init_from": str(start)}))
    finished = tmp_path / "run"
    said = train(config, "training.keep_last_checkpoints=3")
    assert "step 6: validation CRPS" in said and "loss at fixed noise" not in said
    expected = weights_of(finished)
    assert not torch.equal(expected["head.weight"], weights_of(start)["head.weight"])

    shutil.rmtree(finished / "checkpoints" / "step_000006")
    shutil.rmtree(finished / "model")
    assert "resumed after step 3" in train(config)
    for name, weight in weights_of(finished).items():
        assert torch.equal(weight, expected[name]), name

    other = tmp_path / "two_ranks"  # under ZeRO-3, which gathers weights anew for every pass
    train(config, f"output_dir={other}", "deepspeed.zero_optimization.stage=3", launcher=two_ranks())
    for name, weight in weights_of(other).items():
        # the ranks' gradients are summed in another order than accumulated ones
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5)

    forecasts = tmp_path / "forecasts"
    options = ("--shards", tiny_shards / "test", "--members", 2, "--cases", 2, "--out", forecasts)
    done = run([sys.executable, "tools/forecast.py", finished, *options])
    assert done.returncode == 0, done.stderr
    assert json.loads((forecasts / "forecast.json").read_text())["sampling"]["num_steps"] == 2
    case = CaseReader.for_model(finished, tiny_shards / "test").read(0)
    with np.load(forecasts / "case_000000.npz", allow_pickle=False) as stored:
        members = forecast_case(load_forecaster(finished, device="cpu"), case, num_members=2).members
        np.testing.assert_allclose(stored["members"], members, rtol=1e-5, atol=1e-5)
