"""Exported models: a folder with ``model.safetensors`` and ``config.json``, and nothing that runs when it is read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dydiff_dist.data.config import DataConfig
from dydiff_dist.diffusion.config import DiffusionConfig
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.forecaster import Forecaster
from dydiff_dist.models import VideoTransformerConfig, build_network
from dydiff_dist.strict_config import StrictConfig, describe_error

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
FORMAT_VERSION = 1


class ModelDescription(StrictConfig):
    """What config.json says of a model: the sections of its run that a forecast needs, and its data."""

    format_version: int
    data: DataConfig
    model: VideoTransformerConfig
    diffusion: DiffusionConfig
    sampling: SamplingConfig
    data_schema: dict[str, Any]
    """The data's: shape (C, H, W), num_actions, shift and scale per channel, units, channels, …"""


def save_model(
    folder: str | Path, state_dict: dict[str, Tensor], run_config: dict[str, Any], data_schema: dict[str, Any]
) -> Path:
    """Writes a model for forecasting; an older one in the folder is replaced.

    Args:
        folder: created where needed.
        state_dict: the network's weights, on any device.
        run_config: the run's configuration as JSON types, with sections data, model, diffusion, sampling (others are
            kept for the record).
        data_schema: shape, num_actions, shift, scale, …, as ``RunPlan.data_schema``.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    partial = folder / f".{WEIGHTS_NAME}.partial"
    save_file(weights, partial)
    record = {
        "format_version": FORMAT_VERSION,
        "weights_sha256": _sha256(partial),
        "data_schema": data_schema,
        "run": run_config,
    }
    partial.replace(folder / WEIGHTS_NAME)
    description = folder / f".{CONFIG_NAME}.partial"
    description.write_text(json.dumps(record, indent=1) + "\n")
    description.replace(folder / CONFIG_NAME)
    return folder


def find_model(path: str | Path) -> Path:
    """The model folder that ``path`` means: itself, or ``model/`` in a run's folder.

    Raises:
        FileNotFoundError: neither holds a model.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / WEIGHTS_NAME).is_file() and (folder / CONFIG_NAME).is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise FileNotFoundError(f"{path} has checkpoints but no model/; start its training again so that it finishes")
    raise FileNotFoundError(
        f"no model in {str(path)!r}: expected {WEIGHTS_NAME} and {CONFIG_NAME} there or in its model/"
    )


def read_description(folder: str | Path) -> tuple[ModelDescription, str]:
    """(description, sha256 of the weights as recorded) of the model in ``folder``.

    Raises:
        ValueError: config.json is damaged or of another version.
    """
    path = find_model(folder) / CONFIG_NAME
    try:
        record = json.loads(path.read_text())
        sections = {name: record["run"][name] for name in ("data", "model", "diffusion", "sampling")}
        tree = {"format_version": record["format_version"], "data_schema": record["data_schema"], **sections}
        weights_sha256 = str(record["weights_sha256"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); export the model again") from None
    if tree["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {tree['format_version']!r}, this version reads {FORMAT_VERSION}; export again"
        )
    try:
        return ModelDescription.model_validate_json(json.dumps(tree)), weights_sha256
    except ValidationError as error:
        raise ValueError(f"{path}: {describe_error(error, ModelDescription)}") from None


def load_forecaster(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    sampling: SamplingConfig | None = None,
    dtype: torch.dtype = torch.float32,
    max_batch: int = 32,
) -> Forecaster:
    """Loads an exported model.

    Args:
        path: a model folder, or a run's folder that has one in ``model/``.
        device: where the network runs; None takes a GPU if there is one.
        sampling: replaces the sampling of the run's configuration.
        dtype: the network's weights and activations; bfloat16 halves memory.
        max_batch: members that pass through the network together.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a damaged file, or weights that don't fit the configuration.
    """
    folder = find_model(path)
    description, weights_sha256 = read_description(folder)
    weights = _load_weights(folder / WEIGHTS_NAME, weights_sha256)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    schema = description.data_schema
    network = build_network(
        description.model, num_channels=schema["shape"][0], num_action_channels=schema["num_actions"]
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{folder / WEIGHTS_NAME} doesn't fit {CONFIG_NAME} beside it: {reason}") from None
    return Forecaster(
        network=network.eval().requires_grad_(False).to(device, dtype),
        diffusion=description.diffusion.build(schema.get("frame_autocovariance")),
        sampling=sampling or description.sampling,
        num_history_frames=description.data.num_history_frames,
        num_future_frames=description.data.num_future_frames,
        shift=schema["shift"],
        scale=schema["scale"],
        sample_scaling=schema.get("sample_scaling", "none"),
        num_action_channels=schema["num_actions"],
        device=device,
        dtype=dtype,
        max_batch=max_batch,
    )


def _load_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    if _sha256(path) != sha256:
        raise ValueError(f"{path} was altered or cut off: its SHA-256 differs from {CONFIG_NAME}'s; export it again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
