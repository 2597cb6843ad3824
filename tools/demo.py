"""A forecast in half a minute: python tools/demo.py [--out DIR]

Two-dimensional turbulence by a small model that comes with the package, beside what happened: eight cases that it was
not trained on, as pictures, an animation and a page of scores. ``make demo`` trains such a model.
"""

import argparse
from pathlib import Path

import dydiff_dist
from dydiff_dist.errors import run_command
from dydiff_dist.evaluation.score_tables import format_table
from dydiff_dist.forecasting import ForecastRun, Verification, write_evaluation
from dydiff_dist.forecasting.progress import CaseProgress

SHIPPED = Path(dydiff_dist.__file__).parent / "demo"
"""Folder of ``model/`` and ``cases/``."""


def main() -> None:
    arguments = parse_arguments()
    here, out = Path.cwd(), arguments.out
    shipped = SHIPPED.relative_to(here) if SHIPPED.is_relative_to(here) else SHIPPED
    model, cases = shipped / "model", shipped / "cases"
    print(f"the same by hand: dydiff forecast {model} --shards {cases} --out {out}/forecasts")
    print(f"                  dydiff evaluate {out}/forecasts --out {out}/scores")
    run = ForecastRun(model, cases, out / "forecasts", num_members=arguments.members)
    if run.num_reused:
        print(f"reused: {run.num_reused} of {run.num_cases} cases in {out}/forecasts")
    with CaseProgress("forecast", run.num_cases - run.num_reused, run.num_members) as progress:
        run.run(progress.advance)
    verification = Verification.open(out / "forecasts")
    evaluation = verification.evaluate()
    print(format_table(evaluation))
    *_, report, _scores, picture, animation = write_evaluation(verification, evaluation, out / "scores")
    print(f"picture:   {picture}\nanimation: {animation}\nreport:    {report}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/shipped"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--members", type=int, default=8, help="ensemble members per case (8)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
