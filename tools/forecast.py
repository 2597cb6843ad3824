"""Ensemble forecasts: python tools/forecast.py RUN_OR_MODEL --shards DIR --out DIR ...

The cases come from a folder of shards, or with --history from an array of your own. A run that was stopped goes on when
the same command is given again. A case that can't be forecast is named and left out; a single process then ends with
status 1. Several processes share the cases: torchrun --nproc_per_node 2 tools/forecast.py ... (srun, mpirun and
deepspeed alike). Score the result with tools/evaluate.py.
"""

import argparse
import sys
from typing import get_args

from dydiff_dist.diffusion.names import Spacing
from dydiff_dist.diffusion.samplers import SAMPLERS
from dydiff_dist.errors import run_command
from dydiff_dist.extensions import add_import_option
from dydiff_dist.forecasting.progress import CaseProgress
from dydiff_dist.forecasting.run import ForecastRun
from dydiff_dist.ranks.reports import report_once
from dydiff_dist.ranks.world import read_world, set_cpu_threads

FORMATS = {
    "npz": "one case_NNNNNN.npz each: members, lead_frames, key",
    "zarr": "forecasts.zarr: members (case, member, lead, channel, y, x), lead_frames, key, complete",
}


def main() -> int:
    arguments = parse_arguments()
    world = read_world(arguments.device)
    set_cpu_threads(world)
    run = ForecastRun(
        arguments.model,
        arguments.shards or arguments.history,
        arguments.out,
        num_members=arguments.members,
        num_cases=arguments.cases,
        num_frames=arguments.frames,
        seed=arguments.seed,
        sampling=chosen_sampling(arguments),
        precision=arguments.precision,
        file_format=arguments.format,
        calibrated=arguments.calibrated,
        device=world.device,
        batch=arguments.batch,
        rank=world.rank,
        world_size=world.world_size,
    )
    sampling, forecaster = run.sampling, run.forecaster
    if world.is_main:
        reused = f", {run.num_reused} are there already" if run.num_reused else ""
        print(
            f"{run.num_cases} cases x {run.num_members} members, {sampling.sampler} in {sampling.num_steps} steps, on "
            f"{forecaster.device}{reused}"
        )
        if sampling.caution:
            print(f"warning: {sampling.caution}", file=sys.stderr)
    with CaseProgress("forecast", run.num_cases - run.num_reused, run.num_members, enabled=world.is_main) as progress:
        run.run(progress.advance)
    for suffix, num_cases in (("gif", arguments.gif), ("mp4", arguments.mp4)):
        for path in run.animate(num_cases, suffix):
            print(path)
    if world.is_main:
        print(f"forecasts: {arguments.out} ({FORMATS[arguments.format]})")
        if arguments.shards:
            print(f"score them: python tools/evaluate.py {arguments.out} --climatology TRAINING_SHARDS --out DIR")
    for problem in run.problems.values():
        print(f"not forecast: {problem}", file=sys.stderr)
    # launchers end all processes as soon as one fails, so among several the words alone must do
    return 1 if run.problems and world.world_size == 1 else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_import_option(parser)
    parser.add_argument(
        "model", metavar="RUN_OR_MODEL", help="folder of a run or an exported model, or its .safetensors"
    )
    cases = parser.add_mutually_exclusive_group(required=True)
    cases.add_argument("--shards", metavar="DIR", help="shards of the cases, e.g. shards/turbulence/test")
    cases.add_argument(
        "--history",
        type=array_file,
        metavar="FILE",
        help="given frames: .npy (cases, frames, channels, height, width), or .npz with history and actions",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the forecasts")
    parser.add_argument("--format", choices=FORMATS, default="npz", help="a file per case, or one array of all (npz)")
    parser.add_argument("--gif", type=int, default=0, metavar="N", help="animate the first N cases")
    parser.add_argument("--mp4", type=int, default=0, metavar="N", help="the same as videos, to look at only")
    parser.add_argument("--members", type=int, default=8, help="ensemble members per case (8)")
    parser.add_argument("--cases", type=int, metavar="N", help="only the first N cases (all)")
    parser.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="frames to forecast; more than trained on are rolled out, also beyond what the shards know",
    )
    parser.add_argument("--seed", type=int, default=0, help="key of all noise (0)")
    sampling = parser.add_argument_group("sampling (default: as the run's configuration says)")
    sampling.add_argument("--sampler", choices=tuple(SAMPLERS))
    sampling.add_argument("--steps", type=int, metavar="K", help="steps, each one pass through the network (heun: two)")
    sampling.add_argument("--spacing", choices=get_args(Spacing))
    sampling.add_argument("--eta", type=float, help="stochasticity of ddim: 0 none, 1 ancestral")
    sampling.add_argument("--guidance", type=float, metavar="W", help="weight of classifier-free guidance; 1 is none")
    sampling.add_argument(
        "--random-shifts",
        action=argparse.BooleanOptionalAction,
        help="periodic fields from another origin in each step (where trained so)",
    )
    sampling.add_argument(
        "--calibrated",
        action="store_true",
        help="with the spread that tools/evaluate.py --calibrate fitted to the model",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="cpu, cuda, cuda:1 … (a GPU if there is one)")
    machine.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="the network's storage (fp32)")
    machine.add_argument("--batch", type=int, default=32, help="members through the network at once (32)")
    machine.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args()


def array_file(text: str) -> str:
    if not text.endswith((".npy", ".npz")):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .npy or .npz")
    return text


def chosen_sampling(arguments: argparse.Namespace) -> dict:
    fields = {
        "sampler": arguments.sampler,
        "num_steps": arguments.steps,
        "spacing": arguments.spacing,
        "eta": arguments.eta,
        "guidance_weight": arguments.guidance,
        "random_shifts": arguments.random_shifts,
    }
    return {name: value for name, value in fields.items() if value is not None}


if __name__ == "__main__":
    run_command(main, report_once)
