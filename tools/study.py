"""Runs studies and writes what they found: python tools/study.py configs/studies/turbulence.json ...

Trains every arm with every seed, forecasts, scores, and adds to docs/study/NAME_runs.csv and NAME_cases.csv, where the
rows of arms that were not run stay. The same command again does only what is missing in --runs, which may be a folder
outside the checkout. With --page nothing is run: docs/study.md and its figures are written from the
tables.
"""

import argparse
import functools
import signal
from pathlib import Path

from dydiff_dist.errors import run_command
from dydiff_dist.extensions import add_import_option
from dydiff_dist.study.arms import plan_study
from dydiff_dist.study.config import StudyConfig, load_study
from dydiff_dist.study.page import write_page
from dydiff_dist.study.records import update_tables
from dydiff_dist.study.runner import StudyRunner, collect


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the training is told, and waited for
    studies = dict(load_study(path) for path in arguments.studies)
    if arguments.page:
        write_page(studies, Path(arguments.out), Path(arguments.page_file), Path(arguments.images))
        print(arguments.page_file)
        return 0
    failures: dict[str, str] = {}
    for name, study in studies.items():
        failures |= run_study(name, study, arguments)
    for run, reason in failures.items():
        print(f"failed: {run}: {reason}")
    return 1 if failures else 0


def run_study(name: str, study: StudyConfig, arguments: argparse.Namespace) -> dict[str, str]:
    """Runs what is missing and writes the tables; returns what failed."""
    folder, out = Path(arguments.runs) / name, Path(arguments.out)
    runs = plan_study(study, folder, tuple(arguments.arms) if arguments.arms else None)
    runs = [run for run in runs if arguments.seeds is None or run.seed in arguments.seeds]
    num_forecasts = sum(len(run.forecasts) for run in runs)
    print(f"{name}: {len(runs)} trainings, {num_forecasts} forecasts, in {folder}", flush=True)
    if arguments.dry_run:
        for run in runs:
            print(f"{run.folder}: {', '.join(forecast.name for forecast in run.forecasts)}")
        return {}
    modules = getattr(arguments, "import", [])
    say = functools.partial(print, flush=True)
    runner = StudyRunner(study, runs, say=say, processes=arguments.processes, modules=modules)
    if not arguments.collect:
        runner.run()
    failures = {f"{name}, {run}": reason for run, reason in runner.failures.items()}
    run_rows, case_rows = collect(runs)
    if not run_rows:
        print(f"nothing in {folder} is finished; the tables in {out} are left as they are")
        return failures
    kept = update_tables(out, name, run_rows, case_rows, study.planned_forecasts())
    earlier = f", {kept} of earlier runs are kept" if kept else ""
    print(f"{len(run_rows)} forecasts are in {out / name}_runs.csv, their cases in {out / name}_cases.csv{earlier}")
    return failures


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_import_option(parser)
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="configurations, e.g. configs/studies/radar.json")
    parser.add_argument("--runs", default="runs/studies", metavar="DIR", help="folder of the runs (runs/studies)")
    parser.add_argument("--out", default="docs/study", metavar="DIR", help="folder of the tables (docs/study)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these seeds of theirs")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="ranks of each training (1)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="check everything, list the runs, and stop")
    what.add_argument("--collect", action="store_true", help="run nothing, write the tables of what is finished")
    what.add_argument("--page", action="store_true", help="run nothing, write the page from the tables")
    parser.add_argument("--page-file", default="docs/study.md", metavar="FILE", help="the page (docs/study.md)")
    parser.add_argument("--images", default="docs/images", metavar="DIR", help="folder of its figures (docs/images)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
