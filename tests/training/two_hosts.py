"""Two hosts on this machine: network namespaces with an address each, joined by a bridge; with ssh if asked.

They share disk, host name and process ids, so they show launch, rendezvous and traffic, not separate machines. Every
name, address and key belongs to one instance, and `close` removes them all.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

SSH_PORT = 2222


class Network:
    """Hosts 0 and 1, reachable from this process and from each other.

    Attributes:
        addresses: of both hosts.
        namespaces: their names.
    """

    def __init__(self):
        tag, subnet = secrets.token_hex(3), 1 + secrets.randbelow(250)
        self.bridge, self.namespaces = f"dyb{tag}", [f"dyn{tag}{host}" for host in range(2)]
        self.addresses = [f"10.213.{subnet}.{host + 1}" for host in range(2)]
        self.gateway = f"10.213.{subnet}.254"
        try:
            self._join()
        except BaseException:
            Network.close(self)
            raise

    def close(self) -> None:
        """Ends what runs there, and removes namespaces and bridge."""
        for namespace in self.namespaces:
            for pid in _output("ip", "netns", "pids", namespace, check=False).split():
                _kill(int(pid))
            _output("ip", "netns", "delete", namespace, check=False)
        _output("ip", "link", "delete", self.bridge, check=False)

    def kill_host(self, host: int, keep: frozenset[int] = frozenset()) -> list[int]:
        """SIGKILL to every process of a host but ``keep``; returns the process ids."""
        pids = [int(pid) for pid in _output("ip", "netns", "pids", self.namespaces[host]).split()]
        victims = [pid for pid in pids if pid not in keep]
        for pid in victims:
            _kill(pid)
        return victims

    def pull_cable(self, host: int) -> None:
        """From now on no packet comes to the host or from it, and nobody is told."""
        _output("ip", "link", "set", f"v{self.namespaces[host]}", "down")

    def plug_cable(self, host: int) -> None:
        """Undoes `pull_cable`."""
        _output("ip", "link", "set", f"v{self.namespaces[host]}", "up")

    def shut_interface(self, host: int) -> None:
        """Takes the host's own interface down, with its routes."""
        _output("ip", "-n", self.namespaces[host], "link", "set", "eth0", "down")

    def _join(self) -> None:
        """The namespaces, an address in each, and a bridge on which this process has an address too."""
        _output("ip", "link", "add", self.bridge, "type", "bridge")
        _output("ip", "address", "add", f"{self.gateway}/24", "dev", self.bridge)
        _output("ip", "link", "set", self.bridge, "up")
        for namespace, address in zip(self.namespaces, self.addresses, strict=True):
            cable = f"v{namespace}"
            _output("ip", "netns", "add", namespace)
            _output(*f"ip link add {cable} type veth peer name eth0 netns {namespace}".split())
            _output("ip", "link", "set", cable, "master", self.bridge, "up")
            inside = ["ip", "-n", namespace]
            _output(*inside, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                _output(*inside, "link", "set", link, "up")


class TwoHosts(Network):
    """Hosts ``node0`` and ``node1`` with ssh.

    Args:
        folder: for keys, configuration and logs.

    Attributes:
        hostfile: DeepSpeed's, one slot a host.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.daemons = folder, []
        self.hostfile = folder / "hostfile"
        self.hostfile.write_text("node0 slots=1\nnode1 slots=1\n")
        try:
            self._serve_ssh()
        except BaseException:
            self.close()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """For the launcher: an ``ssh`` first in PATH that knows both hosts and the key."""
        return {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}

    def close(self) -> None:
        """Ends the ssh servers too."""
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        super().close()

    def kill_host(self, host: int, keep: frozenset[int] = frozenset()) -> list[int]:
        """As on any host; its ssh server stays."""
        return super().kill_host(host, keep | {self.daemons[host].pid})

    def _serve_ssh(self) -> None:
        """Keys, both servers, and the ``ssh`` of `environment`."""
        for name in ("host_key", "user_key"):
            _output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        shutil.copy(self.folder / "user_key.pub", self.folder / "authorized_keys")
        Path("/run/sshd").mkdir(exist_ok=True)  # where Debian's sshd insists on separating its privileges
        for namespace, address in zip(self.namespaces, self.addresses, strict=True):
            config = self.folder / f"sshd_{namespace}"
            config.write_text(
                f"Port {SSH_PORT}\nListenAddress {address}\nHostKey {self.folder}/host_key\n"
                f"AuthorizedKeysFile {self.folder}/authorized_keys\nPasswordAuthentication no\nUsePAM no\n"
                f"StrictModes no\nPermitRootLogin prohibit-password\nPidFile none\nMaxStartups 100\n"
            )
            command = ["ip", "netns", "exec", namespace, shutil.which("sshd"), "-D", "-e", "-f", str(config)]
            with open(self.folder / f"{namespace}.log", "wb") as log:
                self.daemons.append(subprocess.Popen(command, stderr=log, start_new_session=True))
        public = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        (self.folder / "known_hosts").write_text("".join(f"node{host} {public}\n" for host in range(2)))
        (self.folder / "ssh_config").write_text(
            "".join(
                f"Host node{host}\n  HostName {address}\n  HostKeyAlias node{host}\n"
                for host, address in enumerate(self.addresses)
            )
            + f"Host *\n  Port {SSH_PORT}\n  User root\n  IdentityFile {self.folder}/user_key\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n  StrictHostKeyChecking yes\n  BatchMode yes\n"
            "  ConnectTimeout 10\n  ConnectionAttempts 10\n"
        )
        wrapper = self.folder / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n')
        wrapper.chmod(0o755)


def missing_for_two_hosts() -> str:
    """Why two hosts can't be made here; empty where they can."""
    absent = [name for name in ("sshd", "ssh", "ssh-keygen", "pdsh") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: openssh-server openssh-client pdsh)"
    return missing_for_a_network()


def missing_for_a_network() -> str:
    """Why no network can be made here; empty where one can."""
    if shutil.which("ip") is None:
        return "not installed: ip (Debian: iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"dyp{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=False)
    return ""


def _output(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
