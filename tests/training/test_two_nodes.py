"""DeepSpeed's launcher over ssh on two hosts: the same losses as on one, and a host that dies in the middle."""

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from run_commands import ROOT, TRAIN, environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from two_hosts import TwoHosts, missing_for_two_hosts

STEPS, KILL_AFTER = 150, 25
CHANGES = [f"training.steps={STEPS}", "training.validate_every_steps=0", "training.checkpoint_every_steps=10"]

pytestmark = [pytest.mark.distributed, pytest.mark.long]


@pytest.fixture
def hosts(tmp_path):
    reason = missing_for_two_hosts()
    if reason:
        pytest.skip(reason)
    folder = tmp_path / "hosts"
    folder.mkdir()
    two_hosts = TwoHosts(folder)
    yield two_hosts
    two_hosts.close()


def losses(run: Path) -> dict[int, float]:
    """The training loss by step, of all the run's starts."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss/train")}


def launch(hosts: TwoHosts, config: Path, folder: Path) -> subprocess.Popen:
    """The launcher, started as a user starts it, from a folder with a .deepspeed_env."""
    (folder / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=eth0\nOMP_NUM_THREADS=1\n")
    options = ["--hostfile", str(hosts.hostfile), "--num_nodes", "2", "--master_addr", hosts.addresses[0]]
    return subprocess.Popen(
        ["deepspeed", *options, "--master_port", str(20_000 + secrets.randbelow(10_000)), TRAIN, config, *CHANGES],
        cwd=folder,
        env={**environment(), **hosts.environment, "PATH": f"{hosts.folder}:{environment()['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_the_doctor_looks_at_both_hosts(hosts, tmp_path):
    (tmp_path / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=eth0\nOMP_NUM_THREADS=1\n")
    command = [
        sys.executable,
        ROOT / "tools" / "doctor.py",
        "--hostfile",
        hosts.hostfile,
        "--folder",
        tmp_path / "runs",
    ]
    path = f"{hosts.folder}:{environment()['PATH']}"
    done = subprocess.run(
        [str(word) for word in command],
        cwd=tmp_path,
        env={**environment(), "PATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for fact in ("node0: software", "node1: shared folder", "2 variables", "64 MiB over 2 ranks on cpu"):
        assert fact in done.stdout, done.stdout


def test_two_nodes_train_like_one_and_survive_the_loss_of_one(hosts, tiny_config, tmp_path):
    run = Path(json.loads(tiny_config.read_text())["output_dir"])
    first = launch(hosts, tiny_config, tmp_path)
    try:
        seen = []
        for line in first.stdout:
            seen.append(line)
            if f"step {KILL_AFTER}/{STEPS}:" in line:
                break
        assert first.poll() is None, "".join(seen)
        assert len(hosts.kill_host(1)) >= 2, "a launcher and a rank should have run there"
        rest, _ = first.communicate(timeout=240)
    finally:
        first.kill()  # never a gentler signal: it would make the launcher search and end processes of others by name
    assert first.returncode != 0
    assert f"step {STEPS}/{STEPS}" not in rest
    assert hosts.kill_host(0) == [], "the first host's processes outlived the run"

    second = launch(hosts, tiny_config, tmp_path)
    try:
        output, _ = second.communicate(timeout=240)
    finally:
        second.kill()
    assert second.returncode == 0, output
    resumed_after = int(output.split("resumed after step ")[1].split()[0])
    assert KILL_AFTER - 10 <= resumed_after < STEPS
    assert "node0: " in output and (run / "model" / "model.safetensors").is_file()

    one_node = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    reference = tmp_path / "one_node"
    command = [*one_node, str(TRAIN), str(tiny_config), *CHANGES, f"output_dir={reference}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    # two terms make one sum, whatever way they travel: bit for bit the same
    expected = losses(reference)
    assert len(expected) == STEPS and losses(run) == expected
