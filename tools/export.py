"""Exports a model from a run's checkpoint: python tools/export.py RUN [--step N] [--weights ema|raw] --out DIR

The model is one that tools/forecast.py and load_forecaster read. Neither the data nor the ranks that trained it are
needed, and memory for one parameter is enough. --card makes it one to give away: with a model card, and without the
places of this machine.
"""

import argparse
from pathlib import Path

from dydiff_dist.checkpoints.export import export_checkpoint, find_checkpoint
from dydiff_dist.errors import run_command
from dydiff_dist.extensions import add_import_option
from dydiff_dist.forecasting import save_pretrained
from dydiff_dist.forecasting.exported import MAX_FILE_BYTES


def main() -> None:
    arguments = parse_arguments()
    about_the_card = (arguments.scores, arguments.licence, arguments.note)
    if any(value is not None for value in about_the_card) and not arguments.card:
        raise ValueError("--scores, --licence and --note are for the model card; give --card too, or none of them")
    checkpoint = find_checkpoint(arguments.run, arguments.step)
    folder = export_checkpoint(
        checkpoint,
        arguments.out,
        weights=arguments.weights,
        dtype=arguments.dtype,
        max_file_bytes=int(arguments.max_file_gib * 2**30),
    )
    if arguments.card:
        save_pretrained(folder, folder, scores=arguments.scores, licence=arguments.licence, note=arguments.note)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    print(f"{arguments.weights} weights of {checkpoint} -> {folder} ({', '.join(files)})")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_import_option(parser)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or one of its checkpoints")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint after N steps; default: the newest whole one")
    parser.add_argument(
        "--weights", default="ema", metavar="NAME", help="a moving average's name, or raw; default: %(default)s"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights")
    parser.add_argument(
        "--max-file-gib",
        type=float,
        default=MAX_FILE_BYTES / 2**30,
        metavar="G",
        help="larger weights go to several files with an index; default: %(default)g",
    )
    card = parser.add_argument_group("to give away")
    card.add_argument(
        "--card", action="store_true", help="writes README.md, a model card, and leaves out where data and outputs lay"
    )
    card.add_argument("--scores", metavar="DIR", type=Path, help="that tools/evaluate.py wrote of it, for the card")
    card.add_argument("--licence", metavar="NAME", help="of the weights, for the card: an SPDX name, e.g. cc-by-4.0")
    card.add_argument("--note", metavar="TEXT", help="paragraph for the card, e.g. the commit that trained it")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
