"""Export of checkpoints: the right weights, in the files a forecaster reads, without ever holding them all."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import KINDS, write_checkpoint
from run_commands import run as run_command
from safetensors import safe_open

from dydiff_dist.checkpoints.export import export_checkpoint, find_checkpoint
from dydiff_dist.forecasting import load_forecaster
from dydiff_dist.forecasting.frame_space import input_sizes
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import parse_config

CONFIG = parse_config(
    {
        "output_dir": "runs/x",
        "data": {"train": "shards/x/train", "num_history_frames": 2, "num_future_frames": 3},
        "model": {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4},
        "training": {"steps": 1, "global_batch_size": 1, "micro_batch_per_gpu": 1, "learning_rate": 1e-3},
    },
    "test",
    RunConfig,
)
SCHEMA = {"shape": [2, 8, 8], "num_actions": 0, "shift": [0.0, 0.0], "scale": [1.0, 1.0]}
FACTS = {"config": CONFIG.model_dump(mode="json"), "exported": {"data_schema": SCHEMA}}


def network_state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = CONFIG.model.build(input_sizes(CONFIG.data, (2, 8, 8), 0))
    return {name: torch.randn_like(parameter) for name, parameter in network.named_parameters()}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict]:
    """A run's folder whose newest checkpoint two ranks wrote, and what that holds."""
    folder = tmp_path_factory.mktemp("run")
    state = {kind: network_state(seed) for seed, kind in enumerate(KINDS)}
    total = sum(tensor.numel() for tensor in state["weights"].values())
    for step in (2, 10):
        values = state if step == 10 else {kind: network_state(7) for kind in KINDS}
        write_checkpoint(folder / "checkpoints" / f"step_{step:06d}", values, [0, total // 3, total], facts=FACTS)
    return folder, state


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_forecaster(folder, device="cpu").network.named_parameters())


@pytest.mark.parametrize(("weights", "kind"), [("ema", "average.ema"), ("raw", "weights")])
def test_the_exported_model_has_the_checkpoints_weights(run, tmp_path, weights, kind):
    folder, state = run
    out = export_checkpoint(find_checkpoint(folder, None), tmp_path / "model", weights=weights)
    for name, parameter in loaded(out).items():
        assert torch.equal(parameter, state[kind][name]), name


def test_large_weights_go_to_several_files(run, tmp_path):
    folder, state = run
    checkpoint, out = find_checkpoint(folder, 10), tmp_path / "model"
    export_checkpoint(checkpoint, out)
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    export_checkpoint(checkpoint, out, max_file_bytes=2**14)
    files = sorted(path for path in out.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    largest = max(tensor.nbytes for tensor in state["weights"].values())
    assert all(path.stat().st_size < max(2**14, largest) + 4096 for path in files)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(state["weights"])
    for name, parameter in loaded(out).items():
        assert torch.equal(parameter, state["average.ema"][name]), name
    data = files[1].read_bytes()
    files[1].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{files[1].name} was altered or cut off"):
        load_forecaster(out)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"lacks '{files[1].name}'")):
        load_forecaster(out)
    export_checkpoint(checkpoint, out)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]


def test_half_precision_is_a_rounding_of_the_same_weights(run, tmp_path):
    folder, state = run
    out = export_checkpoint(find_checkpoint(folder, None), tmp_path / "model", dtype="bfloat16")
    with safe_open(out / "model.safetensors", framework="pt") as file:
        for name, tensor in state["average.ema"].items():
            assert torch.equal(file.get_tensor(name), tensor.bfloat16()), name
    assert torch.equal(loaded(out)["head.weight"], state["average.ema"]["head.weight"].bfloat16().float())


def test_memory_is_that_of_one_parameter(tmp_path, monkeypatch):
    num_mib = 2
    shape = (num_mib * 2**18,)
    values = {f"layer{i}": torch.randn(shape) for i in range(12)}
    state = {kind: values for kind in KINDS}
    folder = tmp_path / "step_000001"
    write_checkpoint(folder, state, [0, 5 * shape[0] // 2, 12 * shape[0]], facts=FACTS)
    del state
    peaks = []
    monkeypatch.setattr(
        "dydiff_dist.checkpoints.folder.CheckpointReader.read",
        _watched(_anonymous_bytes, peaks),
    )
    before = _anonymous_bytes()
    export_checkpoint(folder, tmp_path / "model")
    assert len(peaks) == 12
    # the parameter being written, the one being read, and its two parts where two ranks own it
    assert max(peaks) - before < 4 * num_mib * 2**20, (before, peaks)
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > 12 * num_mib * 2**20


def _watched(measure, values):
    from dydiff_dist.checkpoints.folder import CheckpointReader

    read = CheckpointReader.read

    def watched(self, *arguments):
        found = read(self, *arguments)
        values.append(measure())
        return found

    return watched


def _anonymous_bytes() -> int:
    """Memory of this process that no file backs; mapped files are the system's to keep or drop."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


def test_what_cannot_be_exported_is_one_line(run, tmp_path):
    folder, _ = run
    with pytest.raises(FileNotFoundError, match=r"no checkpoint after step 3 .* those there: step_000002, step_000010"):
        find_checkpoint(folder, 3)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        find_checkpoint(tmp_path, None)
    checkpoint = find_checkpoint(folder, 2)
    assert find_checkpoint(checkpoint, None) == checkpoint and find_checkpoint(folder, None).name == "step_000010"
    with pytest.raises(ValueError, match=r"has no weights 'ema2'; it has raw, ema"):
        export_checkpoint(checkpoint, tmp_path / "model", weights="ema2")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't be written"):
        export_checkpoint(checkpoint, tmp_path / "file" / "model")
    damaged = tmp_path / "step_000001"
    write_checkpoint(damaged, {kind: network_state(0) for kind in KINDS}, [0, 100], facts={"config": {}})
    with pytest.raises(ValueError, match="trains no forecaster"):
        export_checkpoint(damaged, tmp_path / "model")
    (damaged / "layout.json").unlink()
    with pytest.raises(ValueError, match=r"no whole checkpoint in .*layout.json \(No such file"):
        find_checkpoint(damaged, None)


@pytest.mark.slow
def test_a_model_to_give_away_has_a_card_and_no_places(run, tmp_path):
    folder, _ = run
    command = [sys.executable, "tools/export.py", folder, "--out", tmp_path / "given", "--note", "Of commit 0123abc."]
    refused = run_command(command)
    assert refused.returncode == 2 and not (tmp_path / "given").exists()
    assert (
        refused.stderr
        == "error: --scores, --licence and --note are for the model card; give --card too, or none of them\n"
    )
    assert run_command([*command, "--card", "--licence", "mit"]).returncode == 0
    card = (tmp_path / "given" / "README.md").read_text()
    assert "Of commit 0123abc." in card and "license: mit" in card
    kept = json.loads((tmp_path / "given" / "config.json").read_text())["run"]
    assert (kept["output_dir"], kept["data"]["train"]) == ("x", "train")
    load_forecaster(tmp_path / "given")
