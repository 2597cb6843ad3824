"""The machines of a hostfile, looked at from this one through ssh, as DeepSpeed's launcher will use it.

Host names reach ssh as arguments of their own, never through a shell, and what ssh is to run there is quoted.
"""

import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dydiff_dist.doctor.findings import Finding
from dydiff_dist.doctor.software import versions

_CONNECT_SEC, _ANSWER_SEC = 10, 60
_VERSIONS_PROGRAM = "import json; from dydiff_dist.doctor.software import versions; print(json.dumps(versions()))"


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their slots, in the file's order; DeepSpeed's own reading of it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is none, or a host that ssh would take for an option.
    """
    from deepspeed.launcher.runner import fetch_hostfile

    if not path.is_file():
        raise FileNotFoundError(f"hostfile {path} does not exist; it has one line a machine: NAME slots=GPUS")
    try:
        hosts = dict(fetch_hostfile(str(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; it must have one line a machine: NAME slots=GPUS") from None
    for host in hosts:
        if host.startswith("-"):
            raise ValueError(f"{path}: {host!r} is no name of a machine")
    return hosts


def check_hosts(hosts: Mapping[str, int], folder: Path) -> list[Finding]:
    """Whether each host can be reached, has the same software, and sees ``folder``; all at once."""
    missing = [name for name in ("ssh", "pdsh") if shutil.which(name) is None]
    findings = [
        Finding(name, "problem", "not installed", f"Debian: apt-get install {package}; or use torchrun or srun")
        for name, package in (("ssh", "openssh-client"), ("pdsh", "pdsh"))
        if name in missing
    ]
    if "ssh" in missing:
        return findings
    token = secrets.token_hex(8)
    marker = folder / f".doctor_{token}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(token)
    except OSError as error:
        findings.append(Finding("shared folder", "problem", f"{folder} cannot be written: {error.strerror}"))
    try:
        with ThreadPoolExecutor(max_workers=16) as pool:
            for found in pool.map(lambda host: list(_check_host(host, marker, token)), hosts):
                findings += found
    finally:
        marker.unlink(missing_ok=True)
    return findings + list(check_environment_file())


def check_environment_file() -> Iterator[Finding]:
    """``.deepspeed_env``, which carries variables to the other machines; the launcher crashes on a line without '='."""
    for path in (Path.home() / ".deepspeed_env", Path(".deepspeed_env")):
        if not path.is_file():
            continue
        lines = path.read_text().splitlines()
        bad = [number for number, line in enumerate(lines, 1) if "=" not in line]
        advice = "one NAME=value a line; no comments and no empty lines"
        text = f"line {bad[0]} has no '='" if bad else f"{len(lines)} variables"
        yield Finding(str(path), "problem" if bad else "ok", text, advice)


def all_reduce_command(hosts: Mapping[str, int], master_addr: str | None) -> list[tuple[str, str]]:
    """(host, command) that runs this program's test of an all-reduce with one rank a host, as its launcher would."""
    address = master_addr or _address_of(next(iter(hosts)))
    port = 20_000 + secrets.randbelow(10_000)
    kept = {key: value for key, value in _forwarded().items()}
    commands = []
    for rank, host in enumerate(hosts):
        variables = {
            **kept,
            "RANK": str(rank),
            "WORLD_SIZE": str(len(hosts)),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        words = ["env", *(f"{key}={value}" for key, value in variables.items()), sys.executable]
        program = [str(Path(sys.argv[0]).resolve()), "--json"]
        commands.append((host, f"cd {shlex.quote(os.getcwd())} && {shlex.join([*words, *program])}"))
    return commands


def all_reduce_over_ssh(hosts: Mapping[str, int], master_addr: str | None, timeout_sec: float = 120) -> list[Finding]:
    """Starts one rank on each host and returns what rank 0 found out about all of them together."""
    processes = [
        subprocess.Popen(_ssh(host, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for host, command in all_reduce_command(hosts, master_addr)
    ]
    try:
        output, errors = processes[0].communicate(timeout=timeout_sec)
    except subprocess.TimeoutExpired:
        advice = (
            "the ranks did not meet: open the ports between the machines, give --master-addr the address that they "
            "share, and on CPUs put GLOO_SOCKET_IFNAME=INTERFACE into .deepspeed_env"
        )
        return [Finding("all-reduce", "problem", f"no result within {timeout_sec:.0f} s", advice)]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    try:
        found = [Finding(**finding) for finding in json.loads(output)]
    except (json.JSONDecodeError, TypeError):
        reason = errors.strip().splitlines()[-1:] or ["no output"]
        return [Finding("all-reduce", "problem", reason[0], "run the same program under torchrun for more")]
    return [finding for finding in found if finding.subject in ("versions", "shared folder", "all-reduce")]


def _check_host(host: str, marker: Path, token: str) -> Iterator[Finding]:
    """One machine: ssh, then its software and the marker file."""
    program = f"{shlex.quote(sys.executable)} -c {shlex.quote(_VERSIONS_PROGRAM)}"
    command = f"cat {shlex.quote(str(marker.resolve()))}; cd {shlex.quote(os.getcwd())} && {program}"
    try:
        done = subprocess.run(_ssh(host, command), capture_output=True, text=True, timeout=_ANSWER_SEC)
    except subprocess.TimeoutExpired:
        yield Finding(host, "problem", f"no answer through ssh within {_ANSWER_SEC} s", "try: ssh " + host)
        return
    if done.returncode == 255:  # ssh's own failure
        reason = (done.stderr.strip().splitlines() or ["ssh failed"])[-1]
        yield Finding(host, "problem", f"not reached: {reason}", _advice_for_ssh(reason, host))
        return
    yield Finding(host, "ok", "reached through ssh without a password")
    shared = done.stdout.startswith(token)
    text = "sees the folder" if shared else f"does not see {marker.parent.resolve()}"
    advice = "output_dir must lie in a folder that all machines mount"
    yield Finding(f"{host}: shared folder", "ok" if shared else "problem", text, advice)
    try:
        theirs = json.loads(done.stdout.removeprefix(token))
    except json.JSONDecodeError:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        advice = (
            f"{sys.executable} with dydiff_dist must exist there too: share the .venv, or make one at the same path"
        )
        yield Finding(f"{host}: software", "problem", reason, advice)
        return
    differing = [
        f"{name} {theirs.get(name)} (here {mine})" for name, mine in versions().items() if theirs.get(name) != mine
    ]
    text = ", ".join(differing) or "the same versions"
    yield Finding(f"{host}: software", "problem" if differing else "ok", text, "use one .venv in a shared folder")


def _ssh(host: str, command: str) -> list[str]:
    options = ("BatchMode=yes", f"ConnectTimeout={_CONNECT_SEC}")
    return ["ssh", *(word for option in options for word in ("-o", option)), host, command]


def _advice_for_ssh(reason: str, host: str) -> str:
    """What to do about ssh's last line."""
    if "Host key verification" in reason:
        return f"its key is not known here: ssh-keyscan {host} >> ~/.ssh/known_hosts, and compare it"
    if "Permission denied" in reason:
        return f"allow this machine's key there: ssh-copy-id {host}"
    if "resolve" in reason:
        return "the name is not known: add it to DNS, /etc/hosts or ~/.ssh/config"
    return "is the machine up, and its ssh server? Another port goes into ~/.ssh/config"


def _address_of(host: str) -> str:
    """The address that ssh would connect to, so that the ranks meet where the launcher would let them."""
    done = subprocess.run(["ssh", "-G", host], capture_output=True, text=True, timeout=_CONNECT_SEC)
    names = [line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("hostname ")]
    try:
        return socket.gethostbyname(names[0] if names else host)
    except OSError:
        return host


def _forwarded() -> dict[str, str]:
    """Variables of .deepspeed_env, as the launcher would export them."""
    variables = {}
    for path in (Path.home() / ".deepspeed_env", Path(".deepspeed_env")):
        if path.is_file():
            pairs = (line.partition("=") for line in path.read_text().splitlines() if "=" in line)
            variables.update({key: value for key, _, value in pairs})
    return variables
