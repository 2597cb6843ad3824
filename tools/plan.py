"""Says what a training run needs, without data, GPUs or memory: memory per GPU, step time, hours, cost.

    python tools/plan.py configs/robonet_xl.json --nodes 4 --gpus-per-node 8 --gpu h100
    python tools/plan.py configs/robonet_xl.json --nodes 128 --gpu h200 --price 3.5 training.global_batch_size=4096

Every assumption is printed and can be changed. The data's sizes come from the shards, or from data.expect where they
are absent.
"""

import argparse
import json
from dataclasses import replace

from dydiff_dist.data.options import add_options, read_options
from dydiff_dist.errors import run_command
from dydiff_dist.hardware import GPU_MODELS, gpu_model
from dydiff_dist.planning.estimate import Cluster, RunEstimate
from dydiff_dist.planning.step_time import Assumptions
from dydiff_dist.planning.summary import as_dict, as_text
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import load_config


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="run configuration, a JSON file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the configuration")
    parser.add_argument("--nodes", type=_count, default=1, metavar="N", help="servers. Default: 1.")
    parser.add_argument("--gpus-per-node", type=_count, default=8, metavar="N", help="GPUs of each. Default: 8.")
    parser.add_argument("--gpu", default="h100", help=f"one of {', '.join(GPU_MODELS)}. Default: h100.")
    parser.add_argument("--price", type=float, metavar="X", help="of a GPU-hour, in your currency")
    parser.add_argument("--gpu-memory-gib", type=float, metavar="X", help="instead of the table's memory of the GPU")
    parser.add_argument("--network-gb-per-sec", type=float, metavar="X", help="instead of the table's, per GPU and way")
    parser.add_argument("--json", action="store_true", help="all numbers as JSON")
    add_options(parser.add_argument_group("assumptions"), Assumptions)
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse_arguments()
    gpu = gpu_model(arguments.gpu)
    if arguments.gpu_memory_gib:
        gpu = replace(gpu, memory_bytes=arguments.gpu_memory_gib * 2**30)
    if arguments.network_gb_per_sec:
        gpu = replace(gpu, network_bandwidth=arguments.network_gb_per_sec * 1e9)
    cluster = Cluster(gpu=gpu, nodes=arguments.nodes, gpus_per_node=arguments.gpus_per_node)
    config = load_config(arguments.config, RunConfig, arguments.overrides)
    estimate = RunEstimate(config, cluster, read_options(arguments, Assumptions))
    if arguments.json:
        print(json.dumps(as_dict(estimate, arguments.price), indent=1))
    else:
        print(as_text(estimate, arguments.price))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


if __name__ == "__main__":
    run_command(main)
