"""Death at any moment: a run that is killed again and again ends with the very weights of one that never was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_commands import environment

from dydiff_dist.checkpoints import folder as checkpoint_folder

SERVER = Path(__file__).with_name("kill_server.py")
STEPS, KILLS = 60, 16


@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tiny_config, tmp_path, num_ranks):
    tree = json.loads(tiny_config.read_text())
    tree["training"] |= {"steps": STEPS, "checkpoint_every_steps": 2, "validate_every_steps": 0, "warmup_steps": 5}
    tree["training"]["log_every_steps"] = STEPS
    tiny_config.write_text(json.dumps(tree))
    command = [sys.executable, SERVER, tiny_config, num_ranks, KILLS, 100 + num_ranks]
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=environment(), timeout=900
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    summary = json.loads(result.stdout.splitlines()[-1])
    print(summary)
    during_saves = sum(count for moment, count in summary["moments"].items() if moment.startswith("save"))
    assert summary["kills"] == KILLS and during_saves >= KILLS // 3, summary
    assert len(set(summary["resumed"])) > KILLS // 3, summary  # from many checkpoints

    runs = tmp_path / "run"
    for name in [f"checkpoints/step_{STEPS:06d}/rank_{rank:05d}.safetensors" for rank in range(num_ranks)]:
        # weights, both moments and the average of every parameter, bit for bit
        assert (runs / "killed" / name).read_bytes() == (runs / "undisturbed" / name).read_bytes(), name
    model = "model/model.safetensors"
    assert (runs / "killed" / model).read_bytes() == (runs / "undisturbed" / model).read_bytes()
    folder = runs / "killed" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        checkpoint_folder.LATEST,
        *(checkpoint_folder.folder_name(step) for step in (STEPS - 2, STEPS)),
    }, "something was left behind"
