"""A model for forecasting from any checkpoint of a run, one parameter at a time."""

import logging
from pathlib import Path
from typing import Literal

import torch

from dydiff_dist.checkpoints import folder as checkpoint_folder
from dydiff_dist.checkpoints.folder import CheckpointReader
from dydiff_dist.engine.state import AVERAGED, WEIGHTS
from dydiff_dist.files import TensorSpec
from dydiff_dist.forecasting.exported import MAX_FILE_BYTES, stream_model

logger = logging.getLogger(__name__)


def find_checkpoint(run: Path, step: int | None) -> Path:
    """The checkpoint of a run after ``step`` steps, the newest whole one if None; all of it is read and verified. Newer
    ones that are damaged are named in the log.

    Args:
        run: a run's folder, its ``checkpoints/``, or a checkpoint itself.
        step: optimizer updates.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    if (run / checkpoint_folder.FACTS).is_file():
        found = [run]
    else:
        found = checkpoint_folder.list_checkpoints(folder)
    if step is not None:
        found = [path for path in found if checkpoint_folder.step_of(path) == step]
    if not found:
        present = ", ".join(path.name for path in checkpoint_folder.list_checkpoints(folder)) or "none"
        wanted = "no checkpoint" if step is None else f"no checkpoint after step {step}"
        raise FileNotFoundError(f"{wanted} in {str(run)!r}; those there: {present}")
    damage: list[str] = []
    for path in reversed(found):
        damaged = checkpoint_folder.damaged_files(path)
        if not damaged:
            if damage:
                logger.warning("damaged: %s; going back to %s", "; ".join(damage), path)
            return path
        damage.append(f"{path.name}: {', '.join(damaged)}")
    raise ValueError(f"no whole checkpoint in {str(run)!r} ({'; '.join(damage)}); give another --step, or another copy")


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    weights: str = "ema",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Path:
    """Writes the model that a checkpoint holds, in memory that one parameter takes.

    Args:
        checkpoint: as ``find_checkpoint`` gives it.
        out: folder of the model.
        weights: ``raw`` for the weights themselves, or the name of a moving average.
        dtype: of the written weights; the checkpoint has float32.
        max_file_bytes: weights beyond it go to several files.

    Returns:
        The folder.

    Raises:
        ValueError: the checkpoint has no such weights, or is not of a forecaster.
    """
    reader = CheckpointReader(checkpoint)
    exported = reader.facts.get("exported") or {}
    if "data_schema" not in exported:
        raise ValueError(f"{checkpoint} is of a run that trains no forecaster; its own program exports it at its end")
    kind = WEIGHTS if weights == "raw" else f"average.{weights}"
    if kind not in reader.kinds(AVERAGED):
        averages = [name.removeprefix("average.") for name in reader.kinds(AVERAGED) if name.startswith("average.")]
        raise ValueError(f"{checkpoint} has no weights {weights!r}; it has raw, {', '.join(averages)}")
    target = getattr(torch, dtype)
    shapes, buffers = reader.shapes(AVERAGED), reader.buffers(AVERAGED)
    specs = {name: TensorSpec(dtype=target, shape=shape) for name, shape in shapes.items()}
    specs |= {name: TensorSpec(dtype=buffer.dtype, shape=tuple(buffer.shape)) for name, buffer in buffers.items()}

    def read(name: str) -> torch.Tensor:
        if name in buffers:
            return buffers[name]
        return reader.read_whole(AVERAGED, kind, name).to(target)

    return stream_model(out, specs, read, reader.facts["config"], max_file_bytes=max_file_bytes, **exported)
