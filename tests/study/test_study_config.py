"""A study's configuration, its plan, and the hashes that say what is done already."""

import json
import shutil
from pathlib import Path

import pytest

from dydiff_dist.data.manifest import LatentsSchema, document_bytes
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.study.arms import PlannedRun, hash_of, plan_study
from dydiff_dist.study.config import StudyConfig, load_study
from dydiff_dist.tasks.config import FewStepRunConfig, RunConfig
from dydiff_dist.training.config import parse_config

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.json"))


def test_every_shipped_study_is_valid():
    assert STUDIES
    for path in STUDIES:
        name, study = load_study(path)
        assert name == path.stem and study.comparisons
        assert (ROOT / study.base).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": ["crsp"]}, "unknown score 'crsp'; there are crps, "),
        ({"forecasts": {"main": {"arms": ["c"]}}}, "forecasts.main.arms names 'c'; the arms are a, b"),
        (
            {"comparisons": [{"title": "t", "reference": "a", "against": ["b/fast"]}]},
            "names 'b/fast'; write ARM or ARM/",
        ),
        ({"arms": {"../a": {}}}, "arms"),
        (
            {"arms": {"a": {}, "b": {"init_from": "c", "task": "fewstep"}}},
            "arms.b.init_from names 'c'; the arms are a, b",
        ),
        ({"arms": {"a": {}, "b": {"init_from": "a"}}}, "arms.b has init_from; only few-step training starts so"),
        (
            {"arms": {"b": {"init_from": "a", "task": "fewstep"}, "a": {}}},
            "arms.b starts from 'a', which stands below it; write that one first",
        ),
        (
            {"arms": {"a": {}, "b": {"init_from": "a", "task": "fewstep", "seeds": [0, 4]}}},
            "arms.b has seed 4, 'a' has not; give both the same seeds",
        ),
        ({"sedes": [1]}, "unknown key 'sedes'; did you mean 'seeds'?"),
        ({"arms": {"a": {"lable": "A"}}}, "unknown key 'arms.a.lable'; did you mean 'arms.a.label'?"),
        (
            {"comparisons": [{"title": "t", "reference": "a", "against": ["b"], "curvs": "lead"}]},
            "unknown key 'comparisons.0.curvs'; did you mean 'comparisons.0.curves'?",
        ),
    ],
)
def test_mistakes_are_one_line(study_tree, tmp_path, change, message):
    path = tmp_path / "study.json"
    path.write_text(json.dumps({**study_tree, **change}))
    with pytest.raises(ValueError) as error:
        load_study(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_study_is_said_in_a_line(tmp_path):
    path = tmp_path / "study.json"
    path.write_text("# not JSON\n" * 50)
    with pytest.raises(ValueError, match=r"study.json: not JSON: expected value at line 1 column 1$"):
        load_study(path)
    with pytest.raises(FileNotFoundError, match="configs/studies/ holds ready ones"):
        load_study(tmp_path / "none.json")


def test_a_wrong_field_of_an_arm_names_the_arm(study_tree, tmp_path):
    study_tree["arms"]["b"]["set"] = {"diffusion.gama_ratio": 0.5}
    with pytest.raises(ValueError, match=r"arm 'b': .*did you mean 'diffusion.gamma_ratio'"):
        plan_study(StudyConfig.model_validate_json(json.dumps(study_tree)), tmp_path)


def test_the_plan_goes_by_seed_and_shares_everything_but_what_is_set(study_tree, tmp_path):
    study_tree["arms"]["b"]["seeds"] = [7]
    study_tree["seeds"] = [7, 3]
    runs = plan_study(StudyConfig.model_validate_json(json.dumps(study_tree)), tmp_path)
    assert [(run.arm, run.seed) for run in runs] == [("a", 7), ("b", 7), ("a", 3)]
    one, other = (run.config.model_dump() for run in runs[:2])
    one["diffusion"].pop("gamma_ratio"), other["diffusion"].pop("gamma_ratio")
    one.pop("output_dir"), other.pop("output_dir")
    assert one == other


def test_the_hash_follows_the_configuration_and_nothing_else(study_tree, tmp_path):
    def hashes(folder: str = "one", **change) -> list[str]:
        study = StudyConfig.model_validate_json(json.dumps({**study_tree, **change}))
        return [run.hash for run in plan_study(study, tmp_path / folder)]

    first = hashes()
    assert len(set(first)) == 2
    assert hashes("two", title="another title") == first
    assert hashes("two", set={"sampling.num_steps": 7}) == first
    assert not set(hashes(set={"training.steps": 5})) & set(first)
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1}) != hash_of({"a": 1, "b": 3})


def test_what_is_written_of_a_run_without_its_defaults_names_its_network(study_tree, tmp_path):
    study_tree["set"] = {"model": {"network": "unet", "width": 8, "num_heads": 1}}
    (run, _) = plan_study(StudyConfig.model_validate_json(json.dumps(study_tree)), tmp_path)
    written = run.config.model_dump(mode="json", exclude_defaults=True)
    assert parse_config(written, "config.json", RunConfig) == run.config


def test_a_few_step_arm_is_its_start_with_what_differs(study_tree, tmp_path):
    study_tree["arms"]["a"]["set"]["training.learning_rate"] = 0.5
    few = {"task": "fewstep", "init_from": "a", "set": {"sampling.num_steps": 1, "score.alpha": 0.9}}
    study_tree["arms"]["few"] = few

    def plan(folder: str = "one") -> dict[str, PlannedRun]:
        study = StudyConfig.model_validate_json(json.dumps(study_tree))
        return {run.arm: run for run in plan_study(study, tmp_path / folder)}

    runs = plan()
    config = runs["few"].config
    assert isinstance(config, FewStepRunConfig) and config.score.alpha == 0.9
    assert (config.diffusion, config.training.learning_rate) == (runs["a"].config.diffusion, 0.5)
    assert config.init_from == str(runs["a"].folder)
    assert runs["few"].forecasts[0].sampling.num_steps == 1
    first = {arm: run.hash for arm, run in runs.items()}
    assert {arm: run.hash for arm, run in plan("two").items()} == first
    few["set"]["sampling.num_steps"] = 2  # trained so, where a denoiser's sampling is no part of its training
    second = {arm: run.hash for arm, run in plan().items()}
    assert second["few"] != first["few"] and second["a"] == first["a"]
    study_tree["arms"]["a"]["set"]["training.learning_rate"] = 0.25
    few["set"]["training.learning_rate"] = 0.5  # as before: only the start is another
    third = {arm: run.hash for arm, run in plan().items()}
    assert len({first["few"], second["few"], third["few"]}) == 3 and third["a"] != first["a"]


def test_cost_of_training_counts_members_steps_and_what_it_started_from(study_tree, tmp_path):
    few = {"task": "fewstep", "init_from": "a", "set": {"sampling.num_steps": 3, "training.num_members": 4}}
    study_tree["arms"] |= {"few": few, "heun": {**few, "set": {**few["set"], "sampling.sampler": "heun"}}}
    runs = {run.arm: run for run in plan_study(StudyConfig.model_validate_json(json.dumps(study_tree)), tmp_path)}
    training = runs["a"].config.training
    samples = training.steps * training.global_batch_size
    assert runs["a"].passes == samples
    assert runs["few"].passes == samples + samples * 4 * 3
    assert runs["heun"].passes == samples + samples * 4 * 5  # two a step but the last


def test_the_hash_of_a_forecast_follows_its_sampling(study_tree, tmp_path):
    def forecasts(**change) -> list[str]:
        tree = {**study_tree, "forecasts": {"main": {"members": 2, **change}}}
        runs = plan_study(StudyConfig.model_validate_json(json.dumps(tree)), tmp_path)
        return [forecast.hash for run in runs for forecast in run.forecasts]

    assert len({*forecasts(), *forecasts(sampling={"num_steps": 3}), *forecasts(members=3)}) == 6
    assert forecasts(arms=["a"]) == forecasts()[:1]


def test_a_sampler_that_an_arm_cannot_use_is_found_before_training(study_tree, tmp_path):
    study_tree["forecasts"]["exact"] = {"members": 2, "sampling": {"sampler": "heun"}}
    study_tree["arms"]["b"]["set"]["diffusion.process"] = "dydiff_independent"
    with pytest.raises(ValueError, match=r"forecast 'exact' of b-seed0-\w+: sampling: sampler 'heun' combines"):
        plan_study(StudyConfig.model_validate_json(json.dumps(study_tree)), tmp_path)
    study_tree["forecasts"]["exact"]["arms"] = ["a"]
    plan_study(StudyConfig.model_validate_json(json.dumps(study_tree)), tmp_path)


def test_an_arm_on_latents_needs_frames_for_the_climatology(study_tree, study_shards, tmp_path):
    latents = shutil.copytree(study_shards / "train", tmp_path / "latents")
    manifest = ShardSet.open(str(study_shards / "train")).manifest
    made_by = LatentsSchema(autoencoder_sha256="0" * 64, source_frames=manifest.frames, source_sha256="0" * 64)
    (latents / "manifest.json").write_bytes(document_bytes(manifest.model_copy(update={"latents": made_by})))
    study_tree["arms"]["b"]["set"]["data.train"] = str(latents)
    with pytest.raises(ValueError, match=r"latents holds latents, .*; set the study's \"climatology\" to the frames"):
        plan_study(StudyConfig.model_validate_json(json.dumps(study_tree)), tmp_path)
    study_tree["climatology"] = str(study_shards / "train")
    assert len(plan_study(StudyConfig.model_validate_json(json.dumps(study_tree)), tmp_path)) == 2


def test_only_some_arms(study_tree, tmp_path):
    study = StudyConfig.model_validate_json(json.dumps(study_tree))
    assert [run.arm for run in plan_study(study, tmp_path, ("b",))] == ["b"]
    with pytest.raises(ValueError, match="no arm 'c'; the arms are a, b"):
        plan_study(study, tmp_path, ("c",))
