"""Reading and writing autoencoder folders: diffusers' two files, and autoencoder.json beside them.

diffusers reads such a folder with ``AutoencoderKL.from_pretrained``. Nothing that runs is in it.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dydiff_dist.arrays import read_safetensors
from dydiff_dist.autoencoders.autoencoder import Autoencoder
from dydiff_dist.autoencoders.description import (
    DESCRIPTION_NAME,
    AutoencoderDescription,
    find_autoencoder,
    read_description,
)
from dydiff_dist.autoencoders.networks import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    DiffusersNetwork,
    NetworkFiles,
    network_from_config,
)
from dydiff_dist.data.manifest import document_bytes
from dydiff_dist.files import atomic_file, file_sha256, remove_partials, write_bytes
from dydiff_dist.quoting import shortened

DESCRIBED_BY = "described_by"
"""Key in the weights' header: they are an autoencoder of ours, whose units stand in the file of that name."""


def save_autoencoder(folder: str | Path, network: DiffusersNetwork, /, **description: Any) -> AutoencoderDescription:
    """Writes an autoencoder; an older one in the folder is replaced.

    Args:
        folder: made where needed.
        network: diffusers' network with its weights, on any device.
        description: fields of ``AutoencoderDescription``; network and hashes are those of what is written.

    Returns:
        What was written to autoencoder.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in network.config.items() if not name.startswith("_")}
    config_data = (json.dumps({"_class_name": type(network).__name__, **config}, indent=1) + "\n").encode()
    remove_partials(folder / WEIGHTS_NAME)
    with atomic_file(folder / WEIGHTS_NAME) as partial:
        weights = network.state_dict()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        # one key: the library writes several in any order
        save_file(tensors, partial, metadata={DESCRIBED_BY: DESCRIPTION_NAME})
        described = {
            **description,
            "network": type(network).__name__,
            "weights_sha256": file_sha256(partial),
            "config_sha256": hashlib.sha256(config_data).hexdigest(),
        }
        written = AutoencoderDescription(**described)
    write_bytes(folder / CONFIG_NAME, config_data)
    # last, as it is what makes the folder an autoencoder
    write_bytes(folder / DESCRIPTION_NAME, document_bytes(written))
    return written


def copy_autoencoder(source: str | Path, folder: str | Path) -> None:
    """Copies an autoencoder into ``folder``; what stands there already of the same identity is kept."""
    source, folder = find_autoencoder(source), Path(folder)
    if (folder / DESCRIPTION_NAME).is_file() and read_description(folder).sha256 == read_description(source).sha256:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        with atomic_file(folder / name) as partial:
            shutil.copyfile(source / name, partial)
    write_bytes(folder / DESCRIPTION_NAME, (source / DESCRIPTION_NAME).read_bytes())


def load_autoencoder(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    max_frames: int = 64,
) -> Autoencoder:
    """Loads the autoencoder in folder ``path``, or in its ``model/``, and checks it against its description.

    Args:
        path: the folder.
        device: where it runs.
        dtype: storage of weights and activations.
        max_frames: frames that pass through it together.

    Raises:
        FileNotFoundError: no autoencoder there.
        ValueError: a file that was altered or damaged, or diffusers is not installed.
    """
    folder = find_autoencoder(path)
    description = read_description(folder)
    for name, expected in ((WEIGHTS_NAME, description.weights_sha256), (CONFIG_NAME, description.config_sha256)):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; restore the autoencoder, or train it again")
        if file_sha256(folder / name) != expected:
            raise ValueError(
                f"{folder / name} was altered or cut off: its SHA-256 differs from {DESCRIPTION_NAME}'s; restore it"
            )
    files = NetworkFiles(folder / CONFIG_NAME, folder / WEIGHTS_NAME)
    network = load_network(files, periodic=description.periodic)
    return Autoencoder(
        network=network.to(device, dtype),
        description=description,
        device=torch.device(device),
        dtype=dtype,
        max_frames=max_frames,
    )


def check_foreign(files: NetworkFiles) -> None:
    """Refuses an autoencoder that ``save_autoencoder`` wrote and whose description is gone: units, edges and identity
    stood there, and others would be taken in their place.

    Raises:
        FileNotFoundError: naming the description.
    """
    with safe_open(files.weights, framework="pt") as weights:
        description = (weights.metadata() or {}).get(DESCRIBED_BY)
    if description is not None:
        raise FileNotFoundError(
            f"{files.weights.parent} lacks {DESCRIPTION_NAME}, which its weights were written with and which holds the "
            "units of its latents; restore it, or train the autoencoder again"
        )


def load_network(files: NetworkFiles, *, periodic: bool = False) -> DiffusersNetwork:
    """The network with its weights, frozen, in evaluation mode, float32 on the CPU.

    Raises:
        ValueError: weights that are damaged or don't fit the config.
    """
    network = network_from_config(files.read_config(), periodic=periodic)
    try:
        network.load_state_dict(read_safetensors(files.weights))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{files.weights} doesn't fit {files.config.name} beside it: {shortened(reason)}") from None
    return network.float().eval().requires_grad_(False)
