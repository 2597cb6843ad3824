"""The machines of a hostfile, looked at from this one through ssh, as DeepSpeed's launcher will use it.

Host names reach ssh as arguments of their own, never through a shell, and what ssh is to run there is quoted.
"""

import json
import os
import re
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
from dydiff_dist.errors import reason_and_advice

_CONNECT_SEC, _ANSWER_SEC = 10, 60
_VERSIONS_PROGRAM = "import json; from dydiff_dist.doctor.software import versions; print(json.dumps(versions()))"


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their slots, in the file's order, as DeepSpeed's launcher reads it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is none, a host given twice, or one that ssh would take for an option.
    """
    if not path.is_file():
        raise FileNotFoundError(f"hostfile {path} does not exist; it has one line a machine: NAME slots=GPUS")
    hosts: dict[str, int] = {}
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = re.match(r"(\S+)\s+slots=(\d+)", line)
        if match is None or match[1] in hosts:
            raise ValueError(f"{path} has a bad entry: {line}; it must have one line a machine: NAME slots=GPUS")
        if match[1].startswith("-"):
            raise ValueError(f"{path}: {match[1]!r} is no name of a machine")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise ValueError(f"{path} is empty; it must have one line a machine: NAME slots=GPUS")
    return hosts


def check_hosts(hosts: Mapping[str, int], folder: Path) -> list[Finding]:
    """Whether each host can be reached, has the same software, and sees ``folder``; all at once."""
    findings = [
        Finding(name, "problem", "not installed", f"Debian: apt-get install {package}; or use torchrun or srun")
        for name, package in (("ssh", "openssh-client"), ("pdsh", "pdsh"))
        if shutil.which(name) is None
    ]
    if shutil.which("ssh") is None:
        return findings
    token = secrets.token_hex(8)
    marker = folder / f".doctor_{token}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(token)
    except OSError as error:
        findings.append(Finding("shared folder", "problem", f"{folder} cannot be written: {reason_and_advice(error)}"))
    try:
        with ThreadPoolExecutor(max_workers=16) as pool:
            for found in pool.map(lambda host: list(_check_host(host, marker, token)), hosts):
                findings += found
    finally:
        marker.unlink(missing_ok=True)
    return findings + list(check_environment_file())


def check_environment_file() -> Iterator[Finding]:
    """``.deepspeed_env``, which carries variables to other machines; the launcher crashes on a line without '='."""
    for path, lines in _environment_files().items():
        bad = [number for number, line in enumerate(lines, 1) if "=" not in line]
        advice = "one NAME=value a line; no comments and no empty lines"
        text = f"line {bad[0]} has no '='" if bad else f"{len(lines)} variables"
        yield Finding(str(path), "problem" if bad else "ok", text, advice)


def all_reduce_command(hosts: Mapping[str, int], folder: Path, master_addr: str | None) -> list[tuple[str, str]]:
    """(host, command) that runs this program with one rank a host, as a launcher would; arguments as of
    `all_reduce_over_ssh`."""
    address = master_addr or _address_of(next(iter(hosts)))
    port = 20_000 + secrets.randbelow(10_000)
    lines = [line for lines in _environment_files().values() for line in lines if "=" in line]
    # the file, as `dydiff doctor` is a name that no Python runs
    program = [str(Path(str(sys.modules["__main__"].__file__)).resolve()), "--json", "--folder", str(folder)]
    commands = []
    for rank, host in enumerate(hosts):
        variables = {
            **dict(line.split("=", 1) for line in lines),
            "RANK": str(rank),
            "WORLD_SIZE": str(len(hosts)),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        words = ["env", *(f"{key}={value}" for key, value in variables.items()), sys.executable]
        commands.append((host, f"cd {shlex.quote(os.getcwd())} && {shlex.join([*words, *program])}"))
    return commands


def all_reduce_over_ssh(
    hosts: Mapping[str, int], folder: Path, master_addr: str | None, timeout_sec: float = 120
) -> list[Finding]:
    """Starts one rank on each host and returns what rank 0 found out about all of them together.

    Args:
        hosts: as `read_hostfile` gives them.
        folder: that all hosts should share, from the working folder.
        master_addr: of the first host, as all others reach it; None is what ssh would connect to.
        timeout_sec: within which they must be done.
    """
    processes = [
        subprocess.Popen(_ssh(host, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for host, command in all_reduce_command(hosts, folder, master_addr)
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
    program = shlex.join([sys.executable, "-c", _VERSIONS_PROGRAM])
    command = f"cat {shlex.quote(str(marker.resolve()))}; cd {shlex.quote(os.getcwd())} && {program}"
    try:
        done = subprocess.run(_ssh(host, command), capture_output=True, text=True, timeout=_ANSWER_SEC)
    except subprocess.TimeoutExpired:
        yield Finding(host, "problem", f"no answer through ssh within {_ANSWER_SEC} s", "try: ssh " + host)
        return
    last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
    if done.returncode == 255:  # ssh's own failure
        yield Finding(host, "problem", f"not reached: {last_line}", _advice_for_ssh(last_line, host))
        return
    yield Finding(host, "ok", "reached through ssh without a password")
    shared = done.stdout.startswith(token)
    text = "sees the folder" if shared else f"does not see {marker.parent.resolve()}"
    advice = "output_dir must lie in a folder that all machines mount"
    yield Finding(f"{host}: shared folder", "ok" if shared else "problem", text, advice)
    advice = f"{sys.executable} with dydiff_dist must exist there too: share the .venv, or make one at the same path"
    try:
        theirs = json.loads(done.stdout.removeprefix(token))
    except json.JSONDecodeError:
        yield Finding(f"{host}: software", "problem", last_line, advice)
        return
    here = versions()
    differing = [f"{name} {theirs.get(name)} (here {here[name]})" for name in here if theirs.get(name) != here[name]]
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


def _environment_files() -> dict[Path, list[str]]:
    """The lines of the files whose variables DeepSpeed's launcher exports; a later file goes before an earlier one."""
    paths = (Path.home() / ".deepspeed_env", Path(".deepspeed_env"))
    return {path: path.read_text().splitlines() for path in paths if path.is_file()}
