"""The configuration: what it accepts, and how it says what is wrong."""

import json

import pytest
from run_commands import ROOT

from dydiff_dist.engine.config import accumulation_steps
from dydiff_dist.engine.deepspeed.config import check_deepspeed, derive_deepspeed
from dydiff_dist.engine.optimizer import schedule_factor
from dydiff_dist.tasks.config import AutoencoderRunConfig, FewStepRunConfig, RunConfig
from dydiff_dist.training.config import TrainingConfig, load_config

TREE = {
    "output_dir": "runs/x",
    "data": {"train": "shards/x/train"},
    "model": {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
    "training": {"steps": 10, "global_batch_size": 4, "micro_batch_per_gpu": 2, "learning_rate": 1e-3},
}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(TREE))
    return path


def test_overrides_reach_their_fields_and_defaults_stand(config_file):
    config = load_config(
        config_file, RunConfig, ["training.steps=20", "output_dir=runs/y", "diffusion.gamma_schedule=none"]
    )
    assert (config.training.steps, config.output_dir, config.diffusion.gamma_schedule) == (20, "runs/y", "none")
    assert config.training.micro_batch_per_gpu == 2
    assert config.kernels.backend == "auto"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stpes=3", r"unknown key 'training.stpes'; did you mean 'training.steps'\?"),
        ("trainig.steps=3", r"unknown key 'trainig'; did you mean 'training'\?"),
        ("model.zzz=3", "unknown key 'model.zzz'; valid keys: network, size, width, depth"),
        ("training.steps=many", "training.steps is 'many': input should be a valid integer"),
        ("training.steps=1.5", "training.steps is 1.5"),
        ("training.steps=0", "training.steps is 0: input should be greater than 0"),
        ("training.precision=fp8", "training.precision is 'fp8'"),
        ("training.global_batch_size=5", "must be a multiple of training.micro_batch_per_gpu 2"),
        ("training.warmup_steps=10", "training.warmup_steps 10 must be below training.steps 10"),
        ("model.num_heads=3", "must be a multiple of 4"),
        ('model.network=["unet"]', r"model: unknown network \['unet'\]; did you mean 'unet'"),
        ("training.more_ema_decays=[0.99]", r"training.more_ema_decays is \[0.99\]: this key is gone after version"),
        ('diffusion.process=["edm"]', r"diffusion.process is \['edm'\]: input should be a valid string"),
        ("training.steps", "must have the form section.key=value"),
        ("output_dir.x=3", "'output_dir' is a value, not a section"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(config_file, override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config(config_file, RunConfig, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "kind"), [("[1]", "list"), ("3", "int")])
@pytest.mark.parametrize("overrides", [[], ["training.steps=3"], ["seed=3"]])
def test_a_file_of_no_sections_is_one_line(tmp_path, text, kind, overrides):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=f"x.json holds a {kind}; a run configuration is an object"):
        load_config(tmp_path / "x.json", RunConfig, overrides)


def test_a_retired_key_that_did_nothing_is_dropped(config_file):
    config = load_config(config_file, RunConfig, ["training.more_ema_decays=[]"])
    assert config == load_config(config_file, RunConfig)


def test_files_that_are_not_a_configuration(tmp_path, config_file):
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        load_config(tmp_path / "absent.json", RunConfig)
    config_file.write_text('{"output_dir": "x",\n "data": }')
    with pytest.raises(ValueError, match="line 2, column 10: not JSON"):
        load_config(config_file, RunConfig)
    config_file.write_text('{"output_dir": "x", "output_dir": "y"}')
    with pytest.raises(ValueError, match="key 'output_dir' stands twice"):
        load_config(config_file, RunConfig)
    config_file.write_text('{"output_dir": "x"}')
    with pytest.raises(ValueError, match=r"key 'data' is required \(and 2 more\)"):
        load_config(config_file, RunConfig)


def training(**changes) -> TrainingConfig:
    return TrainingConfig(**{**TREE["training"], **changes})


def test_batch_arithmetic():
    assert accumulation_steps(training(global_batch_size=12), 3) == 2
    with pytest.raises(ValueError, match=r"micro_batch_per_gpu x ranks = 2 x 4 = 8"):
        accumulation_steps(training(global_batch_size=12), 4)


def test_deepspeed_settings_are_derived_and_checked():
    settings = derive_deepspeed({"zero_optimization": {"stage": 2}}, training(precision="bf16"), 1)
    assert settings["train_batch_size"] == 4 and settings["gradient_accumulation_steps"] == 2
    assert settings["bf16"] == {"enabled": True, "check_grad_overflow": False} and settings["zero_optimization"] == {
        "stage": 2
    }
    for section, message in (
        ({"zero_optimisation": {}}, "did you mean 'deepspeed.zero_optimization'"),
        ({"train_batch_size": 3}, "follows from training.global_batch_size"),
        ({"zero_optimization": {"stage": 4}}, "it must be 0, 1, 2 or 3"),
        ({"zero_optimization": 2}, r"deepspeed.zero_optimization is 2; it must be a section, e.g. {"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "offload_optimizer is 'cpu'; it must be a"),
    ):
        with pytest.raises(ValueError, match=message):
            derive_deepspeed(section, training(), 1)
    with pytest.raises(ValueError, match="float32 master weights"):
        derive_deepspeed({}, training(precision="bf16"), 1)


def test_learning_rate_warms_up_and_falls_to_zero():
    config = training(warmup_steps=4)
    factors = [schedule_factor(step, config) for step in range(11)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0] and factors[4] == 1.0
    assert factors[7] == pytest.approx(0.5) and factors[10] == pytest.approx(0)
    assert schedule_factor(9, training(schedule="constant")) == 1.0


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path):
    if path.stem.endswith("_fewstep"):  # completed by the model it starts from
        config = load_config(path, FewStepRunConfig, [f"init_from={ROOT / 'dydiff_dist' / 'demo' / 'model'}"])
    else:
        config = load_config(path, AutoencoderRunConfig if path.stem.startswith("vae_") else RunConfig)
    check_deepspeed(config.deepspeed, config.training)
    assert config.output_dir == f"runs/{path.stem}"
    for world_size in (1, 2):
        assert accumulation_steps(config.training, world_size) >= 1
    assert config.data.num_frames > config.data.num_history_frames
