"""Which rank a process is, as each launcher's own environment says it."""

import os
import secrets
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from dydiff_dist.ranks import world as distributed
from dydiff_dist.ranks.launchers import first_host, read_launch, tasks_on_node

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "x",
}
DEEPSPEED = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "CROSS_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
KUBERNETES = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
SRUN = {
    "SLURM_PROCID": "9",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_NTASKS": "11",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_STEP_NODELIST": "gpu[003-004,12]",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "MASTER_ADDR": "node0",
}
PMI = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4"}
# mpirun under Slurm starts its own daemons by srun, whose variables the ranks inherit
DAEMON_OF_SRUN = {**SRUN, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
BATCH_SCRIPT = {"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}


@pytest.mark.parametrize(
    ("environment", "launcher", "rank", "local", "meeting_point"),
    [
        (TORCHRUN, "torchrun", (5, 8), (1, 4), ("node0", 29400)),
        (DEEPSPEED, "deepspeed", (1, 4), (1, 2), ("10.0.0.1", 29500)),
        (KUBERNETES, "environment", (3, 4), (0, 1), ("job-master-0", 23456)),
        (SRUN, "srun", (9, 11), (1, 3), ("gpu003", 20_000 + 123456 * 7 % 20_000)),
        ({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "1234"}, "srun", (9, 11), (1, 3), ("head", 1234)),
        ({**SRUN, **TORCHRUN}, "torchrun", (5, 8), (1, 4), ("node0", 29400)),
        (OPEN_MPI, "mpirun", (5, 8), (1, 4), ("node0", 29500)),
        (PMI, "mpiexec", (2, 4), (2, 4), ("127.0.0.1", 29500)),
        ({**DAEMON_OF_SRUN, **OPEN_MPI}, "mpirun", (5, 8), (1, 4), ("node0", 29500)),
        ({**DAEMON_OF_SRUN, **PMI}, "mpiexec", (2, 4), (2, 4), ("127.0.0.1", 29500)),
        (
            {**SRUN, "PMI_RANK": "9", "PMI_SIZE": "11"},
            "srun",
            (9, 11),
            (1, 3),
            ("gpu003", 20_000 + 123456 * 7 % 20_000),
        ),
        ({**OPEN_MPI, **TORCHRUN}, "torchrun", (5, 8), (1, 4), ("node0", 29400)),
        (BATCH_SCRIPT, "none", (0, 1), (0, 1), (None, None)),
        ({}, "none", (0, 1), (0, 1), (None, None)),
    ],
    ids=(
        "torchrun deepspeed kubernetes srun srun-address torchrun-in-srun mpirun mpiexec mpirun-in-srun "
        "mpiexec-in-srun srun-with-pmi torchrun-in-mpirun batch-script none"
    ).split(),
)
def test_every_launcher_is_understood(environment, launcher, rank, local, meeting_point):
    launch = read_launch(environment)
    assert launch.launcher == launcher
    assert (launch.rank, launch.world_size) == rank
    assert (launch.local_rank, launch.local_world_size) == local
    assert (launch.master_addr, launch.master_port) == meeting_point


def test_all_tasks_of_a_job_step_meet_at_one_place():
    places = {
        (launch.master_addr, launch.master_port, launch.world_size)
        for task, node in enumerate([0] * 4 + [1] * 4 + [2] * 3)
        for launch in [
            read_launch({**SRUN, "SLURM_PROCID": str(task), "SLURM_NODEID": str(node), "SLURM_LOCALID": str(task % 3)})
        ]
    }
    assert len(places) == 1
    assert read_launch({**SRUN, "SLURM_JOB_ID": "123457"}).master_port not in {port for _, port, _ in places}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": None}, "RANK is not set"),
        ({"RANK": "one"}, "RANK is 'one'"),
        ({"WORLD_SIZE": "-8"}, "WORLD_SIZE is '-8'"),
        ({"RANK": "8"}, "rank 8 of 8 ranks"),
        ({"LOCAL_RANK": "4"}, "rank 4 of 4 on this machine"),
        ({"LOCAL_WORLD_SIZE": "16"}, "16 ranks on this machine, 8 in all"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "ssh"}, "MASTER_PORT is 'ssh'"),
    ],
)
def test_contradictions_are_named(change, message):
    environment = {key: value for key, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as caught:
        read_launch(environment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**OPEN_MPI, "MASTER_ADDR": ""}, "OMPI_COMM_WORLD_SIZE is 8, but MASTER_ADDR is not set"),
        ({"PMI_SIZE": "4"}, "MASTER_ADDR is not set"),
        ({**PMI, "PMI_RANK": "4"}, r"\(mpiexec\) contradict each other: rank 4 of 4 ranks"),
        ({**PMI, "MPI_LOCALRANKID": "x"}, "MPI_LOCALRANKID is 'x'"),
    ],
)
def test_what_mpi_leaves_out_is_named(environment, message):
    with pytest.raises(ValueError, match=message):
        read_launch(environment)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node7", "node7"),
        ("a1,b2", "a1"),
        ("gpu[003-010,12],login1", "gpu003"),
        ("rack[1-2]-node[05,07-09]", "rack1-node05"),
        ("a1,gpu[003-010]", "a1"),
        ("gpu-a[9].cluster", "gpu-a9.cluster"),
    ],
)
def test_first_host_of_a_node_list(nodelist, host):
    assert first_host(nodelist) == host


def test_tasks_of_each_node():
    assert [tasks_on_node("4(x2),3", node) for node in range(3)] == [4, 4, 3]
    for text, node in (("4(x2),3", 3), ("four", 0)):
        with pytest.raises(ValueError, match="SLURM_STEP_TASKS_PER_NODE"):
            tasks_on_node(text, node)


@pytest.mark.parametrize(
    ("environment", "num_gpus", "device"),
    [
        (TORCHRUN, 0, "cpu"),
        (TORCHRUN, 4, "cuda:1"),
        (SRUN, 3, "cuda:1"),
        (SRUN, 1, "cuda:0"),  # srun --gpus-per-task 1 shows each task its own GPU only
        (TORCHRUN, 1, None),
    ],
)
def test_each_rank_takes_its_own_gpu(monkeypatch, environment, num_gpus, device):
    fake = SimpleNamespace(is_available=lambda: num_gpus > 0, device_count=lambda: num_gpus)
    monkeypatch.setattr(distributed.torch, "cuda", fake)
    monkeypatch.setattr(os, "environ", environment)
    if device is None:
        with pytest.raises(ValueError, match="4 ranks were started on a machine where 1 GPUs are visible"):
            distributed.read_world()
    else:
        assert distributed.read_world().device == torch.device(device)


@pytest.mark.parametrize(
    ("name", "num_gpus", "message"),
    [
        ("gpu", 1, "device is 'gpu'; give cpu, cuda or cuda:N"),
        ("cuda", 0, "device is 'cuda', but 0 GPUs are visible; give cpu"),
        ("cuda:2", 2, "device is 'cuda:2', but 2 GPUs are visible"),
        ("cuda:1", 2, None),
        ("cpu", 0, None),
    ],
)
def test_a_named_device_must_be_there(monkeypatch, name, num_gpus, message):
    fake = SimpleNamespace(is_available=lambda: num_gpus > 0, device_count=lambda: num_gpus)
    monkeypatch.setattr(distributed.torch, "cuda", fake)
    monkeypatch.setattr(os, "environ", TORCHRUN)
    if message is None:
        assert distributed.read_world(name).device == torch.device(name)
    else:
        with pytest.raises(ValueError, match=message) as caught:
            distributed.read_world(name)
        assert "\n" not in str(caught.value)


@pytest.mark.distributed
@pytest.mark.parametrize("style", ["srun", "kubernetes", "mpirun"])
def test_processes_meet_by_these_variables_alone(style):
    program = (
        "import torch, torch.distributed as dist; from dydiff_dist.ranks.collectives import sum_over_ranks; "
        "from dydiff_dist.ranks.rendezvous import start_process_group; from dydiff_dist.ranks.world import read_world; "
        "world = read_world(); start_process_group(world, 1); "
        "print('sum', int(sum_over_ranks(torch.tensor(world.rank + 1.0))), world.local_world_size); "
        "dist.destroy_process_group()"
    )
    job = secrets.randbelow(10**6)
    processes = []
    for rank in range(2):
        if style == "srun":
            variables = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": "2"}
            variables |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
            variables |= {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0"}
        elif style == "mpirun":
            names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
            variables = {f"OMPI_COMM_WORLD_{name}": str(n) for name, n in zip(names, (rank, 2, rank, 2), strict=True)}
            variables |= {"MASTER_PORT": str(20_000 + job % 10_000)}
        else:
            variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
            variables |= {"MASTER_PORT": str(20_000 + job % 10_000)}
        environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **variables}
        command = [sys.executable, "-c", program]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert outputs == ["sum 3 1\n" if style == "kubernetes" else "sum 3 2\n"] * 2
