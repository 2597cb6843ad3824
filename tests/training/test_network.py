"""Two ranks on two hosts, and the network between them goes: every rank ends in time and says why, or goes on."""

import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_commands import ROOT, TRAIN, environment
from two_hosts import Network, missing_for_a_network

DEAD_AFTER_SEC, LEAVE_SEC = 20, 10
PATIENCE = f"training.faults.heartbeat_sec=1 training.faults.dead_after_sec={DEAD_AFTER_SEC}".split()
QUIET = "training.validate_every_steps=0 training.schedule=constant training.checkpoint_every_steps=100000".split()

pytestmark = [pytest.mark.distributed, pytest.mark.long]


@pytest.fixture
def network():
    reason = missing_for_a_network()
    if reason:
        pytest.skip(reason)
    made = Network()
    yield made
    made.close()


class Ranks:
    """One rank on each host, as an operator that sets RANK starts them."""

    def __init__(self, network: Network, config: Path, folder: Path, *changes: str):
        self.logs = [folder / f"rank_{rank}.log" for rank in range(2)]
        port = str(20_000 + secrets.randbelow(10_000))
        self.processes = []
        for rank in range(2):
            variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": network.addresses[0]}
            variables |= {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "eth0"}
            command = ["ip", "netns", "exec", network.namespaces[rank], sys.executable, TRAIN, config]
            with open(self.logs[rank], "w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [str(word) for word in (*command, *PATIENCE, *QUIET, *changes)],
                        cwd=ROOT,
                        env={**environment(), **variables},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait_for_step(self, step: int, timeout: float = 180) -> None:
        """Returns once rank 0 has printed a step's line."""
        deadline = time.monotonic() + timeout
        while f"step {step}/" not in self.logs[0].read_text():
            assert time.monotonic() < deadline and self.processes[0].poll() is None, self.logs[0].read_text()
            time.sleep(0.05)

    def endings(self, timeout: float) -> list[tuple[int, str]]:
        """Exit status and the line of error of each rank, which must end within ``timeout``."""
        start, statuses, seconds = time.monotonic(), [], []
        deadline = start + timeout
        for process, log in zip(self.processes, self.logs, strict=True):
            try:
                statuses.append(process.wait(max(0.0, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                pytest.fail(f"still there after {timeout} s: {log.read_text()}")
            seconds.append(round(time.monotonic() - start, 1))
        print(f"ranks 0 and 1 ended after {seconds} s")
        texts = [log.read_text() for log in self.logs]
        assert "Traceback" not in "".join(texts)
        lines = [" ".join(re.findall(r"^error: .*", text, re.MULTILINE)) for text in texts]
        return list(zip(statuses, lines, strict=True))

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def ranks(network, tiny_config, tmp_path):
    started = Ranks(network, tiny_config, tmp_path, "training.steps=100000")
    yield started
    started.kill()


@pytest.mark.parametrize("host", [0, 1])
def test_a_cable_that_is_pulled_for_good_ends_both_sides(network, ranks, host):
    ranks.wait_for_step(5)
    network.pull_cable(host)
    (first, said_0), (second, said_1) = ranks.endings(DEAD_AFTER_SEC + LEAVE_SEC)
    assert first != 0 and second != 0
    assert said_0.startswith("error: rank 1 (") and "has not been heard of for" in said_0
    assert (
        "rank 1 (" in said_1 and "no answer from the ranks' rendezvous" in said_1 and "network to it, is gone" in said_1
    )


def test_an_interface_that_is_shut_on_the_host_of_rank_0_ends_both_sides(network, ranks):
    ranks.wait_for_step(5)
    network.shut_interface(0)
    (first, said_0), (second, said_1) = ranks.endings(DEAD_AFTER_SEC + LEAVE_SEC)
    assert first != 0 and second != 0 and said_0 and "no answer from the ranks' rendezvous" in said_1


def test_the_host_of_rank_0_without_power_ends_the_other_side(network, ranks):
    ranks.wait_for_step(5)
    network.pull_cable(0)  # first, so that no packet tells of the end
    network.kill_host(0)
    _, (second, said) = ranks.endings(DEAD_AFTER_SEC + LEAVE_SEC)
    assert second != 0 and "rank 0's machine, or the network to it, is gone; the same command resumes" in said


def test_ten_seconds_without_a_network_are_survived(network, tiny_config, tmp_path):
    ranks = Ranks(network, tiny_config, tmp_path, "training.steps=400")
    try:
        ranks.wait_for_step(5)
        network.pull_cable(1)
        time.sleep(10)
        network.plug_cable(1)
        assert ranks.endings(300) == [(0, ""), (0, "")]
        assert "step 400/400" in ranks.logs[0].read_text()
    finally:
        ranks.kill()


def test_a_network_that_goes_before_the_ranks_have_met_ends_them(network, tiny_config, tmp_path):
    network.pull_cable(1)
    ranks = Ranks(network, tiny_config, tmp_path, "training.faults.join_timeout_sec=10")
    try:
        (first, said_0), (second, said_1) = ranks.endings(120)
        assert first == second == 2
        assert "1/2 clients joined" in said_0 and "whether they reach that address" in said_0
        assert "was not reached within 10 s; see whether rank 0 has started there" in said_1
    finally:
        ranks.kill()
