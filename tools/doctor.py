"""Says whether machines are fit for training, and what to do where they are not; status 1 if something will fail.

python tools/doctor.py                                            this machine
python tools/doctor.py --hostfile hostfile                        all machines of a hostfile, through ssh
torchrun --nnodes 2 ... tools/doctor.py --folder /shared/runs     all ranks together (deepspeed and srun alike)
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from dydiff_dist.doctor.examine import examine_hosts, examine_machine, examine_ranks
from dydiff_dist.doctor.findings import as_text, exit_status
from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.errors import run_command
from dydiff_dist.extensions import add_import_option
from dydiff_dist.ranks.reports import report_once
from dydiff_dist.ranks.world import read_world


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_import_option(parser)
    parser.add_argument("--hostfile", type=Path, help="machines to look at, as for deepspeed: NAME slots=GPUS")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="that all should share. Default: runs.")
    parser.add_argument("--master-addr", help="with --hostfile: address of the first machine that all others reach")
    parser.add_argument("--json", action="store_true", help="findings as JSON")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed's launcher passes it
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    for engine in ENGINES.values():
        engine.prepare()
    world = read_world()
    if world.world_size > 1:
        findings = examine_ranks(world, arguments.folder)
    elif arguments.hostfile:
        findings = examine_hosts(arguments.hostfile, arguments.folder, arguments.master_addr)
    else:
        findings = examine_machine()
    if world.is_main:
        print(json.dumps([asdict(finding) for finding in findings]) if arguments.json else as_text(findings))
    return exit_status(findings)


if __name__ == "__main__":
    run_command(main, report_once)
