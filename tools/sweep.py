"""Which sampling is worth its cost: python tools/sweep.py RUN --shards VALIDATION --test TEST --out DIR ...

Tries samplers, numbers of steps and of members on validation cases, prints CRPS, spread over error, log spectral
distance and seconds per member of each, draws CRPS over cost, and prints the cheapest setting within 1 % of the best
CRPS as a section to paste into a configuration. That setting and the run's own are then scored on test cases, which had
no say.
"""

import argparse
import csv
import json
from io import StringIO
from pathlib import Path

from dydiff_dist.diffusion.samplers import SAMPLERS
from dydiff_dist.errors import run_command
from dydiff_dist.evaluation.figures import save_figure
from dydiff_dist.evaluation.score_tables import aligned
from dydiff_dist.extensions import add_import_option
from dydiff_dist.files import write_text
from dydiff_dist.forecasting.cases import CaseReader
from dydiff_dist.forecasting.exported import load_forecaster
from dydiff_dist.forecasting.run import changed_sampling
from dydiff_dist.forecasting.sweep import SCORES, Measured, Trial, best_for_its_cost, sweep_figure

HEADER = ["sampler", "steps", "members", *SCORES, "sec_per_member", "sec_per_case"]


def main() -> None:
    arguments = parse_arguments()
    if min(arguments.members) < 2:
        raise ValueError(f"members {arguments.members} must each be at least 2, so that there is a spread")
    reader = CaseReader.for_model(arguments.model, arguments.shards)
    if reader.shards.manifest.split == "test":
        raise ValueError(f"{arguments.shards} holds test cases; choose on validation cases and give these as --test")
    forecaster = load_forecaster(arguments.model, device=arguments.device, max_batch=arguments.batch)
    trial, test = Trial.on(reader, arguments.cases, forecaster), None
    if arguments.test:
        test = Trial.on(CaseReader.for_model(arguments.model, arguments.test), arguments.cases, forecaster)
    own, measured = forecaster.sampling, []
    for sampler in arguments.samplers:
        for steps in arguments.steps:
            sampling = changed_sampling(own, {"sampler": sampler, "num_steps": steps, "eta": 0.0})
            try:
                found = trial.measure(sampling, arguments.members)
            except ValueError as error:
                print(f"left out: {sampler} in {steps} steps: {error}")
                continue
            measured += found
            print(aligned([HEADER, *map(row, found)]), flush=True)
    if not measured:
        raise ValueError("no setting could be tried; see above")
    chosen, out = best_for_its_cost(measured), Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    table = StringIO()
    csv.writer(table, lineterminator="\n").writerows([HEADER, *map(row, measured)])
    write_text(out / "sweep.csv", table.getvalue())
    print(f"\n{out / 'sweep.csv'}\n{save_figure(sweep_figure(measured, chosen), out / 'sweep.png')}\n")
    print(f"the cheapest within 1 % of the best CRPS, with {chosen.num_members} members:")
    print(json.dumps({"sampling": chosen.sampling.model_dump(exclude_defaults=True)}, indent=2))
    if test is not None:
        print("\non test cases, the chosen setting and the run's own:")
        both = (test.measure(sampling, [chosen.num_members]) for sampling in (chosen.sampling, own))
        print(aligned([HEADER, *(row(found) for (found,) in both)]))


def row(found: Measured) -> list[str]:
    scores = [f"{found.scores[name]:.5g}" if name in found.scores else "-" for name in SCORES]
    costs = [f"{found.seconds_per_member:.4g}", f"{found.seconds_per_case:.4g}"]
    return [found.sampling.sampler, str(found.sampling.num_steps), str(found.num_members), *scores, *costs]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_import_option(parser)
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="folder of a run or an exported model")
    parser.add_argument("--shards", required=True, metavar="DIR", help="validation shards, by which it is chosen")
    parser.add_argument("--test", metavar="DIR", help="test shards, on which the choice is scored at the end")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of sweep.csv and sweep.png")
    parser.add_argument("--samplers", nargs="+", choices=tuple(SAMPLERS), default=list(SAMPLERS), help="(all)")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 2, 4, 8, 12, 25, 50], metavar="K", help="(1 2 4 8 12 25 50)"
    )
    parser.add_argument("--members", type=int, nargs="+", default=[4, 8, 16], metavar="M", help="(4 8 16)")
    parser.add_argument("--cases", type=int, default=16, metavar="N", help="cases of each, evenly spaced (16)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (a GPU if there is one)")
    parser.add_argument("--batch", type=int, default=32, help="members through the network at once (32)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
