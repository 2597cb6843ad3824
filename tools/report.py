"""Puts several scored runs side by side on one page: python tools/report.py LABEL=SCORES LABEL=SCORES --out report.html

SCORES is a folder that tools/evaluate.py wrote. The page stands alone: no network, any browser. It says so where runs
were not scored by the same protocol.
"""

import argparse
from pathlib import Path

from dydiff_dist.errors import run_command
from dydiff_dist.evaluation.html_report import ReportRun, write_report


def main() -> None:
    arguments = parse_arguments()
    print(write_report([parse_run(text) for text in arguments.runs], arguments.out, arguments.title))


def parse_run(text: str) -> ReportRun:
    """LABEL=FOLDER, or FOLDER, whose name is then the label."""
    label, equals, folder = text.partition("=")
    return ReportRun(label, Path(folder)) if equals else ReportRun(Path(text).resolve().name, Path(text))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="LABEL=SCORES", help="folders that tools/evaluate.py wrote")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page")
    parser.add_argument("--title", default="Forecasts compared", help="of the page")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
