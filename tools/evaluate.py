"""Scores a folder of forecasts: python tools/evaluate.py FORECASTS --climatology TRAINING_SHARDS --out DIR ...

Prints CRPS and MSE by lead time beside persistence and climatology and writes scores.json (with the protocol), the
curves, a picture and an animation of some cases, and report.html, a page that stands alone. Several processes share the
cases (torchrun --nproc_per_node 2 tools/evaluate.py ...), with the same numbers. Exit status 1 if a case could not be
scored.
"""

import argparse
import os
import sys
from pathlib import Path

import torch.distributed as dist

from dydiff_dist.errors import run_command
from dydiff_dist.evaluation.choice import SUITES
from dydiff_dist.evaluation.evaluate import Evaluation
from dydiff_dist.evaluation.rain import PRESETS
from dydiff_dist.evaluation.report import format_more_scores, format_table
from dydiff_dist.forecasting.progress import CaseProgress
from dydiff_dist.forecasting.verification import Verification, write_evaluation


def main() -> int:
    arguments = parse_arguments()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    out = Path(arguments.out or Path(arguments.forecasts) / "scores")
    verification = Verification.open(arguments.forecasts, arguments.shards, arguments.cases)
    climatology = verification.climatology(arguments.climatology, arguments.seed) if arguments.climatology else None
    suites = verification.choose_suites(arguments.scores, arguments.preset)
    num_cases = len(verification.numbers[rank::world_size])
    if world_size > 1:
        dist.init_process_group("gloo")
    with CaseProgress("score", num_cases, enabled=rank == 0) as progress:
        evaluation = verification.evaluate(climatology, arguments.climatology_members, suites, progress.advance)
    if world_size > 1:
        dist.destroy_process_group()
    if rank == 0:
        report(verification, evaluation, out, tuple(arguments.pictures))
    return 1 if evaluation.errors else 0


def report(verification: Verification, evaluation: Evaluation, out: Path, pictures: tuple[int, ...]) -> None:
    if evaluation.num_cases:
        print(format_table(evaluation))
        print(format_more_scores(evaluation))
        for name in list(evaluation.tables)[1:]:
            ratio = f"CRPS is {evaluation.skill(name):.3f} of {name}'s"
            print(f"{ratio}, over all lead times, {evaluation.num_cases} cases")
    for path in write_evaluation(verification, evaluation, out, pictures):
        print(path)
    for message in evaluation.errors.values():
        print(f"not scored: {message}", file=sys.stderr)
    if evaluation.errors:
        print(f"error: {len(evaluation.errors)} of {len(verification.numbers)} cases not scored", file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("forecasts", metavar="FORECASTS", help="folder that tools/forecast.py wrote")
    parser.add_argument("--shards", metavar="DIR", help="shards of the truth (where the forecasts were made from)")
    parser.add_argument("--climatology", metavar="DIR", help="training shards; without them that baseline is left out")
    parser.add_argument(
        "--climatology-members", type=int, metavar="M", help="members of that ensemble (the forecast's)"
    )
    parser.add_argument("--scores", nargs="*", choices=SUITES, help="beyond CRPS and MSE (all that fit the data)")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="published protocol of the rain scores")
    parser.add_argument("--seed", type=int, default=0, help="of the climatological ensemble (0)")
    parser.add_argument("--cases", type=int, metavar="N", help="only the first N cases (all that were forecast)")
    parser.add_argument("--pictures", type=int, nargs="*", default=[0], metavar="I", help="cases to picture (0)")
    parser.add_argument("--out", metavar="DIR", help="folder of scores and pictures (FORECASTS/scores)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
