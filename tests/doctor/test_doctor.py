"""The doctor's findings: of this machine, of ranks together, and of what is wrong."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from dydiff_dist.doctor import hosts, machine, software
from dydiff_dist.doctor.findings import Finding, as_text, exit_status, guarded
from dydiff_dist.models.attention import sdpa_attention

ROOT = Path(__file__).parents[2]
DOCTOR = ROOT / "tools" / "doctor.py"


def doctor(*arguments, launcher=(), folder=ROOT, **variables) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, DOCTOR, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


def subjects(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def test_findings_are_printed_with_advice_and_decide_the_status():
    fine = Finding("torch", "ok", "2.13.0", "not shown")
    slow = Finding("kernels", "warning", "reference", "install a compiler")
    wrong = Finding("/dev/shm", "problem", "64 MiB", "start the container with --shm-size=16g")
    text = as_text([fine, slow, wrong])
    assert "not shown" not in text
    assert "WARN kernels" in text and "-> install a compiler" in text
    assert "FAIL /dev/shm" in text and "-> start the container" in text
    assert exit_status([fine, slow]) == 0 and exit_status([fine, wrong]) == 1


def test_an_examination_that_fails_is_a_finding():
    def look():
        yield Finding("a", "ok", "fine")
        raise RuntimeError("the driver is gone")

    (found,) = guarded("GPUs", look)
    assert found.level == "problem" and "the driver is gone" in found.text


def test_versions_are_judged(monkeypatch):
    versions = {**software.versions(), "deepspeed": "0.20.1", "webdataset": "absent", "torch": "2.13.0+cu130"}
    monkeypatch.setattr(software, "versions", lambda: versions)
    found = subjects(list(software.packages()))
    assert found["torch"].level == "ok"
    assert found["deepspeed"].level == "warning" and "< 0.20 is tested" in found["deepspeed"].advice
    assert found["webdataset"].level == "problem" and "make setup" in found["webdataset"].advice


def test_small_shared_memory_and_few_files_are_found(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1024))
    assert "ulimit -n 1024" in subjects(list(machine.limits()))["open files"].advice
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Usage", (), {"total": 2**26}))
    assert subjects(list(machine.memory()))["/dev/shm"].level == "problem"


def test_hostfiles_that_are_none(tmp_path):
    path = tmp_path / "hostfile"
    with pytest.raises(FileNotFoundError, match="NAME slots=GPUS"):
        hosts.read_hostfile(path)
    for text, message in (
        ("node0\n", "bad entry: node0"),
        ("# none\n\n", "empty"),
        ("-oProxyCommand=x slots=1\n", "is no name of a machine"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            hosts.read_hostfile(path)
        assert "\n" not in str(caught.value)
    path.write_text("# two\nnode0 slots=8\nnode1 slots=4\n")
    assert hosts.read_hostfile(path) == {"node0": 8, "node1": 4}


def test_an_environment_file_that_crashes_the_launcher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\n\n")
    found = subjects(list(hosts.check_environment_file()))[".deepspeed_env"]
    assert found.level == "problem" and "line 2 has no '='" in found.text


def test_hosts_that_do_not_answer(tmp_path, monkeypatch):
    """ssh is replaced by programs that fail as it does."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("ssh", "pdsh"):
        (tmp_path / name).touch(mode=0o755)
    for message, advice in (
        ("Permission denied (publickey).", "ssh-copy-id far"),
        ("Host key verification failed.", "ssh-keyscan far"),
        ("Could not resolve hostname far", "/etc/hosts"),
        ("connect to host far port 22: Connection refused", "is the machine up"),
    ):
        (tmp_path / "ssh").write_text(f"#!/bin/sh\necho '{message}' >&2\nexit 255\n")
        found = subjects(hosts.check_hosts({"far": 8}, tmp_path / "runs"))["far"]
        assert found.level == "problem" and message.rstrip(".") in found.text and advice in found.advice
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_on_other_hosts_run_this_program_on_the_same_folder(tmp_path):
    """ssh is replaced by a program that runs here what it is to run there; `dydiff doctor` starts it, a name that no
    Python runs."""
    (tmp_path / "pdsh").touch(mode=0o755)
    (tmp_path / "ssh").write_text('#!/bin/sh\ntest "$1" = -G && echo "hostname 127.0.0.1" || eval "$6"\n')
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "hostfile").write_text("one slots=1\ntwo slots=1\n")
    variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    options = ["--hostfile", tmp_path / "hostfile", "--folder", tmp_path / "shared", "--master-addr", "127.0.0.1"]
    command = [str(word) for word in (sys.executable, "-m", "tools.dydiff", "doctor", *options, "--json")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=240)
    found = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert found["one"]["level"] == found["two: shared folder"]["level"] == "ok", done.stdout + done.stderr
    assert "over 2 ranks on cpu" in found["all-reduce"]["text"], done.stdout
    assert found["shared folder"]["text"] == f"{tmp_path / 'shared'} is the same for all ranks"


def test_a_machine_without_gpu_or_hostfile(tmp_path):
    result = doctor("--json", folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    found = {finding["subject"]: finding for finding in json.loads(result.stdout)}
    assert {"python", "torch", "deepspeed", "kernels", "attention", "memory", "network"} <= found.keys()
    assert list(tmp_path.iterdir()) == []


def test_an_xformers_that_does_not_run_is_a_warning(monkeypatch):
    failure = "is installed but does not run beside torch 2.11.0 here (No operator found)"
    monkeypatch.setattr(software.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(software, "resolve_attention", lambda *_: sdpa_attention)
    monkeypatch.setattr(software, "xformers_failure", lambda *_: failure)
    monkeypatch.setattr(software, "versions", lambda: {"xformers": "0.0.35"})
    (found,) = software.attention()
    assert found.level == "warning" and found.text == f"sdpa on cuda; xformers {failure}"
    assert "uninstall xformers" in found.advice
    monkeypatch.setattr(software, "versions", lambda: {"xformers": "absent"})
    (found,) = software.attention()
    assert (found.level, found.text) == ("ok", "sdpa on cuda")


@pytest.mark.distributed
def test_ranks_look_at_each_other(tmp_path):
    port = str(20_000 + secrets.randbelow(10_000))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    result = doctor("--folder", tmp_path / "runs", launcher=launcher)
    assert result.returncode == 0, result.stdout + result.stderr
    for fact in ("the same on all 2 ranks", "is the same for all ranks", "64 MiB over 2 ranks on cpu", "GB/s per rank"):
        assert result.stdout.count(fact) == 1, result.stdout
    assert list((tmp_path / "runs").iterdir()) == []
