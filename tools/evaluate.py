"""Scores a folder of forecasts: python tools/evaluate.py FORECASTS --climatology TRAINING_SHARDS --out DIR ...

Prints CRPS and MSE by lead time beside persistence and climatology and writes scores.json (with the protocol), the
curves, a picture and an animation of some cases, and report.html, a page that stands alone. Several processes share the
cases (torchrun --nproc_per_node 2 tools/evaluate.py ..., srun, mpirun and deepspeed alike), with the same numbers. Exit
status 1 if a case could not be scored.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

import torch

from dydiff_dist.diffusion.names import look_up
from dydiff_dist.errors import run_command
from dydiff_dist.evaluation.baselines import BASELINES, Baseline, SeasonalNaive
from dydiff_dist.evaluation.choice import PRESETS, SUITES
from dydiff_dist.evaluation.evaluate import Evaluation
from dydiff_dist.evaluation.fvd import FvdProtocol
from dydiff_dist.evaluation.resampling import Independent
from dydiff_dist.evaluation.score_files import SCORES_NAME
from dydiff_dist.evaluation.score_tables import format_more_scores, format_table
from dydiff_dist.extensions import add_import_option
from dydiff_dist.forecasting.daily_climatology import DailyClimatology
from dydiff_dist.forecasting.evaluation_files import write_evaluation
from dydiff_dist.forecasting.inflation import check_calibration, fit_inflation, write_inflation
from dydiff_dist.forecasting.progress import CaseProgress
from dydiff_dist.forecasting.verification import Verification
from dydiff_dist.ranks.rendezvous import start_process_group
from dydiff_dist.ranks.reports import report_once
from dydiff_dist.ranks.world import read_world

_SCORING_MINUTES = 24 * 60
"""By which one process may be done before another."""
_MOST_ERRORS = 20
"""Lines of them on a terminal."""


def main() -> int:
    arguments = parse_arguments()
    world = read_world("cpu")  # where scores are exchanged
    out = Path(arguments.out or Path(arguments.forecasts) / "scores")
    verification = Verification.open(arguments.forecasts, arguments.shards, arguments.cases)
    pictures = verification.check_numbers(arguments.pictures)
    if arguments.calibrate:
        check_calibration(verification, arguments.calibrate)
    baselines = chosen_baselines(verification, arguments)
    suites = verification.choose_suites(arguments.scores, arguments.preset)
    if arguments.lpips:
        suites.append(verification.lpips(arguments.lpips, arguments.preset))
    fvd = None
    if arguments.fvd:
        protocol = FvdProtocol(include_history=not arguments.fvd_forecast_only)
        fvd = verification.fvd(arguments.fvd, arguments.fvd_sha256, protocol)
    if world.world_size > 1:
        start_process_group(world, timeout_minutes=_SCORING_MINUTES)
    num_cases = len(verification.numbers[world.rank :: world.world_size])
    with CaseProgress("score", num_cases, enabled=world.is_main) as progress:
        evaluation = verification.evaluate(
            *baselines, suites=suites, fvd=fvd, independent=arguments.independent, on_case=progress.advance
        )
    if world.world_size > 1:
        torch.distributed.destroy_process_group()
    if world.is_main:
        report(verification, evaluation, out, pictures)
        if arguments.calibrate:
            inflation = fit_inflation(verification, evaluation)
            factors = ", ".join(f"+{lead}: {factor:.3f}" for lead, factor in enumerate(inflation.factors, start=1))
            print(f"{write_inflation(inflation, arguments.calibrate)}: members from their mean, times {factors}")
    return 1 if evaluation.errors else 0


def chosen_baselines(verification: Verification, arguments: argparse.Namespace) -> list[Baseline]:
    baselines = [look_up("baseline", name, BASELINES) for name in arguments.baseline]
    if arguments.climatology:
        baselines.append(verification.climatology(arguments.climatology, arguments.seed, arguments.climatology_members))
    if arguments.daily_climatology:
        baselines.append(DailyClimatology(arguments.daily_climatology, verification.reader))
    if arguments.optical_flow:
        baselines.append(verification.optical_flow())
    if arguments.season:
        baselines.append(SeasonalNaive(arguments.season))
    return baselines


def report(verification: Verification, evaluation: Evaluation, out: Path, pictures: tuple[int, ...] | None) -> None:
    if evaluation.num_cases:
        print(format_table(evaluation))
        print(format_more_scores(evaluation))
        for name in list(evaluation.tables)[1:]:
            ratio = f"CRPS is {evaluation.skill(name):.3f} of {name.replace('_', ' ')}'s"
            print(f"{ratio}, over all lead times, {evaluation.num_cases} cases")
    for path in write_evaluation(verification, evaluation, out, pictures):
        print(path)
    errors = [message for _, message in sorted(evaluation.errors.items())]
    for message in errors[:_MOST_ERRORS]:
        print(f"not scored: {message}", file=sys.stderr)
    if unfinished := verification.unfinished():
        print(unfinished, file=sys.stderr)
    if errors:
        where = f"; {SCORES_NAME} names all" if len(errors) > _MOST_ERRORS else ""
        print(f"error: {len(errors)} of {len(verification.numbers)} cases not scored{where}", file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_import_option(parser)
    parser.add_argument("forecasts", metavar="FORECASTS", help="folder that tools/forecast.py wrote")
    parser.add_argument("--shards", metavar="DIR", help="shards of the truth (where the forecasts were made from)")
    parser.add_argument("--cases", type=int, metavar="N", help="only the first N cases (all that were forecast)")
    parser.add_argument("--pictures", type=int, nargs="*", metavar="I", help="cases to picture (the first scored one)")
    parser.add_argument("--out", metavar="DIR", help="folder of scores and pictures (FORECASTS/scores)")
    baselines = parser.add_argument_group("baselines beyond persistence")
    baselines.add_argument("--climatology", metavar="DIR", help="an ensemble of training frames, from these shards")
    baselines.add_argument("--climatology-members", type=int, metavar="M", help="of that ensemble (the forecast's)")
    baselines.add_argument(
        "--daily-climatology",
        metavar="STORE",
        help="of weather: zarr or netCDF by dayofyear and hour (WeatherBench 2)",
    )
    baselines.add_argument("--seed", type=int, default=0, help="of that ensemble (0)")
    baselines.add_argument(
        "--optical-flow", action="store_true", help="the motion of the given frames carried on (needs pysteps)"
    )
    baselines.add_argument(
        "--season", type=int, metavar="N", help="of series: the value N frames earlier, e.g. 24 for hourly data"
    )
    baselines.add_argument(
        "--baseline", action="append", default=[], metavar="NAME", help="one of your own, registered by --import MODULE"
    )
    scores = parser.add_argument_group("scores")
    scores.add_argument("--scores", nargs="*", choices=SUITES, help="beyond CRPS and MSE (all that fit the data)")
    scores.add_argument("--preset", choices=PRESETS, default="default", help="a published protocol of rain or video")
    scores.add_argument(
        "--independent",
        choices=get_args(Independent),
        help="intervals over cases, or over groups whose keys agree up to the last hyphen (groups where there are any)",
    )
    scores.add_argument("--lpips", metavar="FILE", help="adds LPIPS: torchvision's AlexNet or VGG-16 weights")
    scores.add_argument(
        "--fvd", metavar="FILE", help="adds FVD: TorchScript file of an I3D network. Loading it runs what it holds"
    )
    scores.add_argument("--fvd-sha256", metavar="HEX", help="what that file must be; else it is not loaded")
    scores.add_argument("--fvd-forecast-only", action="store_true", help="FVD of clips without the given frames")
    parser.add_argument(
        "--calibrate",
        metavar="MODEL",
        help="fit to validation cases the spread with which 80%% intervals hold 80%%, for forecast.py --calibrated",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main, report_once)
