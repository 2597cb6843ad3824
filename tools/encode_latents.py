"""Encodes shards of frames into shards of latents: python tools/encode_latents.py AUTOENCODER --shards DIR --out DIR

AUTOENCODER is a run of tools/train_vae.py, an autoencoder's folder or .safetensors file as diffusers saves it, or a
name on the Hugging Face hub. DIR holds what tools/make_shards.py wrote (train, valid, test), or is its URL. Latents go
to OUT/train, OUT/valid, OUT/test, the autoencoder itself to OUT/autoencoder.

An example that works on the demo's data, a small autoencoder trained in a few minutes first:

    python tools/make_shards.py turbulence --out shards/turbulence --train 768
    python tools/train_vae.py configs/vae_turbulence_small.json
    python tools/encode_latents.py runs/vae_turbulence_small --shards shards/turbulence --out latents/turbulence \\
        --verify 8 --config configs/turbulence_latent_small.json

Stopped at any moment, the same command goes on with the shards that are missing. Many processes share the shards
without another option, started by torchrun, deepspeed or srun: torchrun --nproc_per_node 8 tools/encode_latents.py ...
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from dydiff_dist.autoencoders import encode
from dydiff_dist.autoencoders.encode_source import EncodeSource, EncodeSourceConfig
from dydiff_dist.autoencoders.verify import verify_latents
from dydiff_dist.benchmarks.training_step import ONLINE, PRE_ENCODED, measure_speed_up
from dydiff_dist.data.convert import ConversionReport
from dydiff_dist.data.manifest import Manifest, read_document
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.data.source import ShardTask
from dydiff_dist.errors import run_command
from dydiff_dist.evaluation.figures import save_figure
from dydiff_dist.evaluation.reconstruction import format_reconstruction
from dydiff_dist.extensions import add_import_option
from dydiff_dist.ranks.reports import report_once
from dydiff_dist.ranks.world import World, read_world
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import load_config


def main() -> int:
    if len(sys.argv) == 1:
        print(__doc__)
        return 2
    arguments = parse_arguments()
    world, out = read_world(arguments.device), Path(arguments.out)
    source = prepare(arguments, world, out)
    tasks = source.plan()[world.rank :: world.world_size]
    with EncodingProgress(source, tasks, enabled=world.is_main) as progress:
        part = (world.rank, world.world_size)
        report = encode.encode_shards(source, out, part, arguments.max_bad_rate, progress.on_shard)
    print_report(report, progress, world)
    if report.manifests and arguments.verify:
        verify(source, out, arguments.verify)
    if report.manifests and arguments.config:
        report_speed_up(source, out, arguments.config)
    return 0


def prepare(arguments: argparse.Namespace, world: World, out: Path) -> EncodeSource:
    """Opens shards and autoencoder, and says what is to be done."""
    device = world.device
    on_gpu = device.type == "cuda"
    torch.set_num_threads(1)  # each worker calculates alone, so that no number of threads changes the bytes
    splits = encode.open_splits(arguments.shards)
    config = EncodeSourceConfig(
        kind=arguments.kind,
        mirror=arguments.mirror,
        batch_frames=arguments.batch_frames,
        precision=arguments.precision or ("bf16" if on_gpu else "fp32"),
        seed=arguments.seed,
        damaged_samples="skip" if arguments.max_bad_rate else "error",
    )
    folder = encode.place_autoencoder(arguments.autoencoder, next(iter(splits.values())), out, world.rank, device)
    compiled = on_gpu and not arguments.no_compile
    autoencoder = encode.open_autoencoder(
        folder, device, config.precision, max_frames=config.batch_frames, compiled=compiled
    )
    num_workers = arguments.workers or encode.worker_threads(device, world.local_world_size)
    source = EncodeSource(splits, autoencoder, config, num_workers)
    if world.is_main:
        describe(source, out, f"{config.precision} on {device}, {world.world_size} processes")
    return source


def describe(source: EncodeSource, out: Path, where: str) -> None:
    description = source.autoencoder.description
    for split, shards in source.splits.items():
        schema = shards.schema
        latents = (description.latent_frames(schema.num_frames), *description.latent_shape(schema.shape))
        frames = (schema.num_frames, *schema.shape)
        num_shards = len(shards.manifest.shards)
        print(f"{split}: {len(shards)} samples {_shape(frames)} -> {_shape(latents)}, {num_shards} shards")
    size = sum(task.estimated_bytes for task in source.plan())
    print(f"autoencoder {description.sha256[:12]}…: {description.network}, {where}")
    print(f"about {size / 1e6:,.0f} MB under {out}")


class EncodingProgress:
    """A bar over frames with frames/s, GB/s and the time left; it counts this process's share."""

    def __init__(self, source: EncodeSource, tasks: list[ShardTask], enabled: bool):
        self.source, source.on_frames = source, self.on_frames
        self.num_frames = self.num_bytes = 0
        self.started = time.perf_counter()
        total = source.num_frames(tasks)
        self.bar = tqdm(total=total, unit="frame", unit_scale=True, dynamic_ncols=True, disable=not enabled)

    def on_frames(self, num_frames: int, num_bytes: int) -> None:
        self.num_frames += num_frames
        self.num_bytes += num_bytes
        self.bar.set_postfix_str(f"{self.num_bytes / 1e9 / self.elapsed_sec:.3f} GB/s", refresh=False)
        self.bar.update(num_frames)

    def on_shard(self, task: ShardTask, num_samples: int, reused: bool) -> None:
        if reused:  # what stands is no part of the rate
            self.bar.total -= self.source.num_frames([task])
            self.bar.refresh()

    @property
    def elapsed_sec(self) -> float:
        return max(time.perf_counter() - self.started, 1e-9)

    def __enter__(self) -> "EncodingProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self.elapsed_sec
        self.bar.close()


def print_report(report: ConversionReport, progress: EncodingProgress, world: World) -> None:
    for item in report.bad_items:
        print(f"left out {item.name}: {item.reason}", file=sys.stderr)
    if report.num_written:
        share = "" if world.world_size == 1 else f" by process {world.rank}"
        frames_per_sec, bytes_per_sec = (n / progress.seconds for n in (progress.num_frames, progress.num_bytes))
        rate = f"{frames_per_sec:,.1f} frames/s, {bytes_per_sec / 1e9:.4f} GB/s of frames"
        print(f"encoded {progress.num_frames} frames in {progress.seconds:.1f} s{share}: {rate}")
    if report.num_reused:
        print(f"reused {report.num_reused} shards that stood complete, wrote {report.num_written}")
    if report.num_elsewhere:
        print(f"{report.num_elsewhere} shards are left to other processes; the last one writes the manifests")
    for split, path in report.manifests.items():
        manifest = read_document(path, Manifest)
        size = sum(shard.bytes for shard in manifest.shards)
        print(f"{split}: {manifest.num_samples} samples, {size / 1e6:,.1f} MB -> {path}")


def verify(source: EncodeSource, out: Path, num_samples: int) -> None:
    training = next(iter(source.splits.values())).manifest  # the training split where there is one
    for split, shards in source.splits.items():
        latents = ShardSet.open(out / split)
        judged = verify_latents(latents, shards, source.autoencoder, num_samples, training=training)
        picture, scores = save_figure(judged.figure(), out / f"verify_{split}.png"), judged.scores.summary()
        print(f"verified {min(num_samples, len(shards))} of {split}: {format_reconstruction(scores)} -> {picture}")


def report_speed_up(source: EncodeSource, out: Path, config: str) -> None:
    """Times both kinds of training step on the first split."""
    split, shards = next(iter(source.splits.items()))
    run = load_config(config, RunConfig)
    seconds = measure_speed_up(run, out / split, shards.folder, out / encode.AUTOENCODER_FOLDER)
    pre_encoded, online = median(seconds[PRE_ENCODED]), median(seconds[ONLINE])
    num_samples, num_steps = run.training.micro_batch_per_gpu, len(seconds[ONLINE])
    print(
        f"a training step of {config} ({num_samples} samples, {num_steps} steps of each kind in turn): "
        f"{pre_encoded:.3f} s pre-encoded, {online:.3f} s encoding online: {online / pre_encoded:.2f}x"
    )


def _shape(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_import_option(parser)
    parser.add_argument("autoencoder", metavar="AUTOENCODER", help="run, folder, .safetensors file or hub name")
    parser.add_argument("--shards", required=True, metavar="DIR", help="shards of frames: folder or URL")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the latents; shared by all processes")
    parser.add_argument(
        "--verify", type=int, default=0, metavar="N", help="decode N random samples per split and score them"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="configuration of the run on the latents: at the end, time its training step"
    )
    stored = parser.add_argument_group("what is stored")
    stored.add_argument(
        "--kind",
        choices=("posterior", "sample"),
        default="posterior",
        help="mean and log-variance, from which training draws anew each time (default), or one draw",
    )
    stored.add_argument("--mirror", action="store_true", help="also the mirror image of every training sample")
    stored.add_argument("--seed", type=int, default=0, help="key of the noise of --kind sample (0)")
    stored.add_argument(
        "--max-bad-rate",
        type=float,
        default=0.0,
        metavar="X",
        help="leave out damaged samples up to this share, and name them; 0 stops at the first (default)",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="cpu, cuda, cuda:1 … (each process its own GPU, if there is one)")
    machine.add_argument("--precision", choices=("fp32", "bf16"), help="arithmetic (bf16 on a GPU, fp32 on a CPU)")
    machine.add_argument("--batch-frames", type=int, default=64, metavar="N", help="frames encoded at once (64)")
    machine.add_argument("--workers", type=int, metavar="N", help="threads that read and encode (the process's cores)")
    machine.add_argument("--no-compile", action="store_true", help="no torch.compile on a GPU")
    machine.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main, report_once)
