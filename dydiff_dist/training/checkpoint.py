"""Checkpoints that are either complete or invisible.

A checkpoint is a folder ``checkpoints/step_000100``: DeepSpeed's own files, every rank's EMA shards, and
``complete.json`` with the run's configuration and the size of every file. It is written under a temporary name,
flushed, and renamed; only then older ones are deleted.

DeepSpeed stores optimizer state as pickles, so resume only from folders that nobody else can write to. What leaves a
run, the exported model, is safetensors and JSON.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dydiff_dist.training.distributed import World, barrier
from dydiff_dist.training.ema import ShardedEMA
from dydiff_dist.training.position import RunPosition

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{6,})")


class CheckpointStore:
    """The checkpoints of one run. All methods that write or load are collective."""

    def __init__(self, folder: Path, world: World, keep_last: int):
        self.folder, self.world, self.keep_last = folder, world, keep_last

    def save(self, position: RunPosition, engines: Mapping[str, Any], ema: ShardedEMA, config: dict) -> Path:
        """Writes the state at ``position`` and deletes what is older than the last ``keep_last``.

        Args:
            position: the same on every rank.
            engines: the run's only engine, by its network's name.
            ema: its moving average.
            config: the run's, as JSON types.
        """
        (engine,) = engines.values()
        final = self.folder / f"step_{position.step:06d}"
        partial = self.folder / f".{final.name}.partial"
        if self.world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()
        engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        save_file(ema.state_dict(), partial / f"ema_rank_{self.world.rank:05d}.safetensors")
        barrier()
        if self.world.is_main:
            _seal(partial, {"position": asdict(position), "world_size": self.world.world_size, "config": config})
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _flush(self.folder)
            self._prune()
        barrier()
        return final

    def load_latest(
        self, engines: Mapping[str, Any], ema: ShardedEMA, check_config: Callable[[dict], None]
    ) -> RunPosition:
        """Loads the newest complete checkpoint; returns its position, the start if there is none.

        Args:
            engines: the run's only engine, by its network's name; takes weights, optimizer and schedule.
            ema: takes its shards.
            check_config: called with the checkpoint's configuration before anything is loaded; raises to refuse it.

        Raises:
            ValueError: the checkpoint was written by another number of ranks, or ``check_config`` refuses it.
        """
        (engine,) = engines.values()
        for folder in reversed(self.complete()):
            state = json.loads((folder / "complete.json").read_text())
            if state["world_size"] != self.world.world_size:
                raise ValueError(
                    f"{folder} was written by {state['world_size']} ranks, this run has {self.world.world_size}; start "
                    f"{state['world_size']} ranks, or set output_dir to a new folder"
                )
            check_config(state["config"])
            engine.load_checkpoint(str(self.folder), tag=folder.name)
            ema.load_state_dict(load_file(folder / f"ema_rank_{self.world.rank:05d}.safetensors"))
            return RunPosition(**state["position"])
        return RunPosition()

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first; damaged ones are left out with a warning."""
        found = sorted(
            (path for path in self.folder.glob("step_*") if _NAME.fullmatch(path.name)),
            key=lambda path: int(path.name.removeprefix("step_")),
        )
        return [path for path in found if self._is_whole(path)]

    def _is_whole(self, folder: Path) -> bool:
        try:
            record = json.loads((folder / "complete.json").read_text())
            sizes, _ = record["bytes"], [record[key] for key in ("position", "world_size", "config")]
            damaged = [name for name, size in sizes.items() if (folder / name).stat().st_size != size]
        except (OSError, ValueError, KeyError) as error:
            damaged = [f"complete.json ({type(error).__name__})"]
        if damaged and self.world.is_main:
            logger.warning("checkpoint %s is damaged (%s) and is passed over", folder, ", ".join(damaged))
        return not damaged

    def _prune(self) -> None:
        for folder in self.complete()[: -self.keep_last]:
            shutil.rmtree(folder)


def _seal(folder: Path, facts: dict) -> None:
    """Flushes every file to the disk and records their sizes beside ``facts``."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        _flush(path)
        sizes[path.name] = path.stat().st_size
    record = folder / "complete.json"
    record.write_text(json.dumps({**facts, "torch": torch.__version__, "bytes": sizes}, indent=1))
    _flush(record)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
