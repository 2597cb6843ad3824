"""Puts several scored runs side by side on one page: python tools/report.py LABEL=SCORES LABEL=SCORES --out report.html

SCORES is a folder that tools/evaluate.py wrote. Prints and shows, score by score, how each run differs from the first
one, with a paired bootstrap over what tools/evaluate.py took as independent: cases, or groups of them (windows of one
event, clips of one trajectory). Runs that were not scored by the same protocol over the same cases are not compared,
and it says why. The page stands alone: no network, any browser.
"""

import argparse
from pathlib import Path

from dydiff_dist.errors import run_command
from dydiff_dist.evaluation.comparison import compare, format_comparison
from dydiff_dist.evaluation.html_report import write_report
from dydiff_dist.evaluation.score_files import ScoredRun


def main() -> None:
    arguments = parse_arguments()
    runs = [parse_run(text) for text in arguments.runs]
    for run in runs[1:]:
        print(format_comparison(compare(runs[0], run)))
    print(write_report(runs, arguments.out, arguments.title))


def parse_run(text: str) -> ScoredRun:
    """LABEL=FOLDER, or FOLDER, whose name is then the label."""
    label, equals, folder = text.partition("=")
    return ScoredRun(label, Path(folder)) if equals else ScoredRun(Path(text).resolve().name, Path(text))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="LABEL=SCORES", help="folders that tools/evaluate.py wrote")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page")
    parser.add_argument("--title", default="Forecasts compared", help="of the page")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
