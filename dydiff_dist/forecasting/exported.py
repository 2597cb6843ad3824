"""Exported models: a folder with ``model.safetensors`` and ``config.json``, and nothing that runs when it is read.

Large weights lie in several files, ``model-00001-of-00003.safetensors`` and so on, and
``model.safetensors.index.json`` says which tensor is where.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, ValidationError, field_validator, model_validator
from torch import Tensor

from dydiff_dist.arrays import read_safetensors
from dydiff_dist.autoencoders import load_autoencoder
from dydiff_dist.autoencoders import read_description as read_autoencoder_description
from dydiff_dist.autoencoders.description import pixel_data
from dydiff_dist.autoencoders.files import copy_autoencoder
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.manifest import FrameSchema, Size, StoredType
from dydiff_dist.data.remote import from_elsewhere
from dydiff_dist.diffusion.config import DiffusionConfig
from dydiff_dist.errors import reason_and_advice
from dydiff_dist.files import (
    TensorSpec,
    atomic_file,
    file_order,
    file_sha256,
    parse_json,
    parse_sealed,
    plain_name,
    read_document_bytes,
    seal,
    write_json,
    write_tensor_file,
)
from dydiff_dist.forecasting.config import SamplingConfig
from dydiff_dist.forecasting.forecaster import Forecaster
from dydiff_dist.forecasting.frame_space import FrameSpace, LatentFrames, PlainFrames, input_sizes
from dydiff_dist.models import AnyDenoiserConfig
from dydiff_dist.quoting import quoted, shortened
from dydiff_dist.strict_config import StrictConfig, describe_error

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAME = "config.json"
AUTOENCODER_FOLDER = "autoencoder"
MODEL_FOLDER = "model"
"""In a run's folder."""
FORMAT_VERSION = 1
_REMEDY = "export the model again"
MAX_FILE_BYTES = 8 * 2**30
"""Weights beyond it go to several files."""


class DataSchema(FrameSchema):
    """What a model says of its data, as far as forecasts need it; more may stand there."""

    model_config = ConfigDict(extra="allow")

    num_frames: Size = 1
    dtype: StoredType = "float32"
    num_actions: int
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    frame_autocovariance: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _check_units(self) -> "DataSchema":
        if not len(self.shift) == len(self.scale) == self.shape[0] or 0 in self.scale:
            raise ValueError(f"shift and scale must hold {self.shape[0]} numbers each, a channel one, no scale 0")
        return self


class ModelDescription(StrictConfig):
    """What config.json says of a model: the sections of its run that a forecast needs, and its data."""

    format_version: int
    data: DataConfig
    model: AnyDenoiserConfig
    diffusion: DiffusionConfig
    sampling: SamplingConfig
    autoencoder_sha256: str | None = None
    """Identity of the autoencoder in ``autoencoder/`` beside this file, where the network forecasts latents."""
    data_schema: dict[str, Any]
    """The data's, as ``DataSchema``: shape (C, H, W), num_actions, shift and scale per channel, units, channels, …"""

    @field_validator("data_schema")
    @classmethod
    def _check_data_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        try:
            DataSchema.model_validate_json(json.dumps(schema))
        except ValidationError as error:
            raise ValueError(describe_error(error, DataSchema)) from None
        return schema


def save_model(
    folder: str | Path,
    state_dict: dict[str, Tensor],
    run_config: dict[str, Any],
    data_schema: dict[str, Any],
    *,
    autoencoder: str | Path | None = None,
) -> Path:
    """Writes a model for forecasting; an older one in the folder is replaced.

    Args:
        folder: created where needed.
        state_dict: the network's weights, on any device.
        run_config: the run's configuration as JSON types, with sections data, model, diffusion, sampling (others are
            kept for the record).
        data_schema: shape, num_actions, shift, scale, …, as ``RunPlan.data_schema``; of the frames, not the latents.
        autoencoder: folder of the autoencoder whose latents the network forecasts; it is copied into the model.

    Returns:
        The folder.
    """
    specs = {name: TensorSpec(dtype=tensor.dtype, shape=tuple(tensor.shape)) for name, tensor in state_dict.items()}

    def read(name: str) -> Tensor:
        return state_dict[name].detach().cpu()

    return stream_model(folder, specs, read, run_config, data_schema, autoencoder=autoencoder)


def stream_model(
    folder: str | Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], Tensor],
    run_config: dict[str, Any],
    data_schema: dict[str, Any],
    max_file_bytes: int = MAX_FILE_BYTES,
    *,
    autoencoder: str | Path | None = None,
) -> Path:
    """``save_model`` for weights that needn't fit in memory: they are read and written one tensor after the other.

    Args:
        folder: created where needed.
        specs: dtype and shape of every weight, by name.
        read: name -> the weight, on the CPU.
        run_config: as in ``save_model``.
        data_schema: as in ``save_model``.
        max_file_bytes: weights beyond it go to several files.
        autoencoder: as in ``save_model``.

    Returns:
        The folder.

    Raises:
        ValueError: the folder can't be written; an older model in it is untouched.
    """
    folder = Path(folder)
    parts = _split(specs, max_file_bytes)
    sums = _write_weights(folder, parts, read)
    written = set(sums)
    if len(parts) > 1:
        written.add(INDEX_NAME)
        index = {
            "metadata": {"total_size": sum(spec.num_bytes for spec in specs.values()), "sha256": sums},
            "weight_map": {weight: name for name, part in zip(sums, parts, strict=True) for weight in part},
        }
        write_json(folder / INDEX_NAME, index)
    record = {
        "format_version": FORMAT_VERSION,
        "autoencoder_sha256": None if autoencoder is None else _add_autoencoder(folder, autoencoder),
        "weights_sha256": file_sha256(folder / INDEX_NAME) if len(parts) > 1 else sums[WEIGHTS_NAME],
        "data_schema": data_schema,
        "run": run_config,
    }
    write_json(folder / CONFIG_NAME, seal(record))
    _remove_older(folder, written)
    return folder


def _add_autoencoder(folder: Path, autoencoder: str | Path) -> str:
    """Copies an autoencoder into the model and returns its identity."""
    copy_autoencoder(autoencoder, folder / AUTOENCODER_FOLDER)
    return read_autoencoder_description(folder / AUTOENCODER_FOLDER).sha256


def _write_weights(folder: Path, parts: list[dict[str, TensorSpec]], read: Callable[[str], Tensor]) -> dict[str, str]:
    """Writes a file of each part, all of them or none, and returns their SHA-256 by file name."""
    numbers = range(1, len(parts) + 1)
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in numbers]
    sums = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as partials:  # the files get their names together, when the last one is written
            for name, part in zip(names if len(parts) > 1 else [WEIGHTS_NAME], parts, strict=True):
                partial = partials.enter_context(atomic_file(folder / name))
                sums[name] = write_tensor_file(partial, part, map(read, file_order(part))).sha256
    except OSError as error:
        raise ValueError(f"{folder} can't be written: {reason_and_advice(error)}") from None
    return sums


def _split(specs: Mapping[str, TensorSpec], max_bytes: int) -> list[dict[str, TensorSpec]]:
    """The weights in their order, in as many parts as keep each below ``max_bytes`` where a single one allows it."""
    parts: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if parts[-1] and size + spec.num_bytes > max_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = spec
        size += spec.num_bytes
    return parts


def _remove_older(folder: Path, written: set[str]) -> None:
    """Deletes the weights of an older model that lay in other files, and of one whose export was killed."""
    for path in (*folder.glob("model*.safetensors"), *folder.glob(".model*.partial"), folder / INDEX_NAME):
        if path.name not in written:
            path.unlink(missing_ok=True)


def find_model(path: str | Path) -> Path:
    """The model folder that ``path`` means: itself, ``model/`` in a run's folder, or where a file of weights lies.

    Raises:
        FileNotFoundError: none of them holds a model.
    """
    path = Path(path)
    if path.name in (WEIGHTS_NAME, INDEX_NAME) and path.is_file():
        path = path.parent
    for folder in (path, path / MODEL_FOLDER):
        has_weights = (folder / WEIGHTS_NAME).is_file() or (folder / INDEX_NAME).is_file()
        if has_weights and (folder / CONFIG_NAME).is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"{path} has checkpoints but no model/; start its training again so that it finishes, or export a "
            "checkpoint with tools/export.py"
        )
    if path.parent.name == "checkpoints" and path.is_dir():
        raise FileNotFoundError(f"{path} is a checkpoint; export it: python tools/export.py {path} --out DIR")
    raise FileNotFoundError(
        f"no model in {str(path)!r}: expected {WEIGHTS_NAME} and {CONFIG_NAME} there or in its model/"
    )


def read_description(folder: str | Path) -> tuple[ModelDescription, str]:
    """(description, sha256 of the weights as recorded) of the model in ``folder``.

    Raises:
        ValueError: config.json is damaged or of another version.
    """
    path = find_model(folder) / CONFIG_NAME
    record = parse_sealed(read_document_bytes(path), str(path), _REMEDY)
    try:
        sections = {name: record["run"][name] for name in ("data", "model", "diffusion", "sampling")}
        tree = {"format_version": record["format_version"], "data_schema": record["data_schema"], **sections}
        tree["autoencoder_sha256"] = record.get("autoencoder_sha256")  # absent before there were latents
        weights_sha256 = str(record["weights_sha256"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from None
    if tree["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {quoted(tree['format_version'])}, this version reads {FORMAT_VERSION}; export "
            "again"
        )
    try:
        return ModelDescription.model_validate_json(json.dumps(tree)), weights_sha256
    except ValidationError as error:
        raise ValueError(f"{path}: {describe_error(error, ModelDescription, tree)}") from None


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
        path: a model folder or its file of weights, or a run's folder that has a model in ``model/``.
        device: where the network runs; None takes a GPU if there is one.
        sampling: replaces the sampling of the run's configuration.
        dtype: the network's weights and activations; bfloat16 halves memory.
        max_batch: members that pass through the network together.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a damaged file, or weights that don't fit the configuration.

    Examples:
        >>> forecaster = load_forecaster("runs/turbulence_fewstep")  # doctest: +SKIP
    """
    folder = find_model(path)
    description, weights_sha256 = read_description(folder)
    weights = read_weights(folder, weights_sha256)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data, schema = description.data, description.data_schema
    frames = _frame_space(folder, description, device)
    shape = frames.network_shape(data.frame_shape(tuple(schema["shape"])))
    sizes = input_sizes(data, shape, schema["num_actions"] * frames.temporal_ratio)
    try:
        return Forecaster.of_weights(
            description.model.build(sizes),
            weights,
            data=data,
            frames=frames,
            device=device,
            dtype=dtype,
            diffusion=description.diffusion.build(
                schema.get("frame_autocovariance"), num_history_frames=data.num_history_frames
            ),
            sampling=sampling or description.sampling,
            num_action_channels=sizes.num_action_channels,
            max_batch=max_batch,
        )
    except RuntimeError as error:  # what torch's load_state_dict raises
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{folder / WEIGHTS_NAME} doesn't fit {CONFIG_NAME} beside it: {shortened(reason)}") from None


def case_data(description: ModelDescription, folder: str | Path) -> DataConfig:
    """How cases are cut for a model: its own ``data``, in frames where it counts latent frames."""
    data = description.data.model_copy(update={"remote": from_elsewhere(description.data.remote)})
    if description.autoencoder_sha256 is None:
        return data
    return pixel_data(data, read_autoencoder_description(find_model(folder) / AUTOENCODER_FOLDER).temporal_ratio)


def patch_pixels(description: ModelDescription, folder: str | Path) -> int:
    """Pixels of the stored frames along the edge of a patch: of latents, the network's times the autoencoder's
    ``spatial_ratio``; 1 where nothing cuts frames into patches."""
    edge = description.model.patch_edge
    if description.autoencoder_sha256 is None:
        return edge
    return edge * read_autoencoder_description(find_model(folder) / AUTOENCODER_FOLDER).spatial_ratio


def _frame_space(folder: Path, description: ModelDescription, device: torch.device) -> FrameSpace:
    """What the model's frames are: latents of the autoencoder beside it, or the data's own frames."""
    schema = description.data_schema
    bounds = schema.get("bounds", ())
    if description.autoencoder_sha256 is None:
        scaling = schema.get("sample_scaling", "none"), bounds, schema.get("empty_history_scale", ())
        return PlainFrames(schema["shift"], schema["scale"], *scaling)
    autoencoder = load_autoencoder(folder / AUTOENCODER_FOLDER, device=device)
    if autoencoder.description.sha256 != description.autoencoder_sha256:
        raise ValueError(
            f"{folder} was trained on latents of autoencoder {description.autoencoder_sha256}, its "
            f"{AUTOENCODER_FOLDER}/ holds {autoencoder.description.sha256}; export the model again"
        )
    return LatentFrames(autoencoder, bounds)


def read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    """All weights of the model in ``folder`` by name, on the CPU.

    Args:
        folder: as `find_model` gives it.
        sha256: what its config.json says of them, see `read_description`.

    Raises:
        FileNotFoundError, ValueError: a file that is missing, altered or damaged.
    """
    index, single = folder / INDEX_NAME, folder / WEIGHTS_NAME
    if not index.is_file() or (single.is_file() and file_sha256(index) != sha256):
        return _load_file(single, sha256, CONFIG_NAME)
    if file_sha256(index) != sha256:
        raise ValueError(f"{index} was altered: its SHA-256 differs from {CONFIG_NAME}'s; export it again")
    try:
        sums = parse_json(read_document_bytes(index), str(index), _REMEDY)["metadata"]["sha256"]
        paths = {folder / plain_name(name): digest for name, digest in sums.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged ({type(error).__name__}); {_REMEDY}") from None
    weights: dict[str, Tensor] = {}
    for path, digest in paths.items():
        if not path.is_file():
            raise FileNotFoundError(f"{folder} lacks {path.name!r}, which {INDEX_NAME} lists; {_REMEDY}")
        weights |= _load_file(path, digest, INDEX_NAME)
    return weights


def _load_file(path: Path, sha256: str, source: str) -> dict[str, Tensor]:
    """The tensors of one file; ``source`` is where the SHA-256 stands."""
    if file_sha256(path) != sha256:
        raise ValueError(f"{path} was altered or cut off: its SHA-256 differs from {source}'s; export it again")
    return read_safetensors(path)
