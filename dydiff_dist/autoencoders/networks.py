"""diffusers' autoencoder networks: built anew, or fetched from a folder, a file or the hub. No pickle is read.

diffusers is imported when one is needed, not before: it is an extra (``pip install dydiff_dist[latents]``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dydiff_dist.autoencoders.config import AutoencoderModelConfig
from dydiff_dist.files import parse_json, read_document_bytes
from dydiff_dist.quoting import first_line, quoted, shortened

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"

VIDEO_NETWORKS = ("AutoencoderKLCogVideoX", "AutoencoderKLLTXVideo")
"""Autoencoders that also compress time. One that does not look back only is refused when it is taken into use
(``adopt.measure_ratios``): CogVideoX's group normalisation mixes the frames of a stretch."""

NETWORKS = ("AutoencoderKL", *VIDEO_NETWORKS)
"""Classes of diffusers that are known to work here: a Gaussian posterior with ``encode`` and ``decode``."""


class DiffusersNetwork(nn.Module):
    """What all of them offer; for type checkers, diffusers' own classes are other ones."""

    config: Mapping[str, Any]
    encoder: nn.Module

    def encode(self, pixels: Tensor) -> Any:
        """An object whose ``latent_dist`` has mean, std and logvar."""

    def decode(self, latents: Tensor) -> Any:
        """An object whose ``sample`` is pixels."""


def diffusers() -> Any:
    """The diffusers package; a one-line ``ValueError`` where it is not installed."""
    try:
        import diffusers as package
    except ImportError:
        raise ValueError(
            "autoencoders need the package diffusers; install it with: pip install 'dydiff_dist[latents]'"
        ) from None
    package.utils.logging.set_verbosity_error()  # it recommends packages that nothing here needs
    return package


def build_network(config: AutoencoderModelConfig, *, num_channels: int, frame_size: int) -> DiffusersNetwork:
    """A new AutoencoderKL for frames of ``num_channels`` channels; ``frame_size`` is noted in its config."""
    levels = len(config.channels)
    network = diffusers().AutoencoderKL(
        in_channels=num_channels,
        out_channels=num_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=config.mid_attention,
        sample_size=frame_size,
    )
    return wrap_around(network) if config.periodic else network


def wrap_around(network: DiffusersNetwork) -> DiffusersNetwork:
    """Makes all convolutions of an AutoencoderKL pad periodically, in place.

    diffusers halves the frame by a convolution of stride 2 after padding right and bottom with zeros; here it pads all
    around. Either way a shift by whole latent pixels shifts the latents.
    """
    module: Any  # of diffusers
    for module in network.modules():
        if type(module).__name__ == "Downsample2D":
            module.padding = 1  # diffusers pads by itself where this is 0
            module.conv.padding = (1, 1)
            module.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]  # what nn.Conv2d(padding=1) would hold
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    return network


def network_from_config(config: dict[str, Any], *, periodic: bool = False) -> DiffusersNetwork:
    """The network that diffusers' ``config.json`` describes, with fresh weights.

    Raises:
        ValueError: a class that is not among ``NETWORKS``, or values that it can't be built of.
    """
    name = config.get("_class_name")
    if name not in NETWORKS:
        raise ValueError(f"autoencoder class {quoted(name)} is not supported; use one of {', '.join(NETWORKS)}")
    try:
        network = getattr(diffusers(), name).from_config(config)
    except Exception as error:  # whatever a network's constructor makes of wrong values
        raise ValueError(f"config of autoencoder {name} can't be built: {first_line(error)}") from None
    return wrap_around(network) if periodic else network


@dataclass(frozen=True)
class NetworkFiles:
    """Where the two files of a diffusers autoencoder lie."""

    config: Path
    weights: Path

    def read_config(self) -> dict[str, Any]:
        """The config as JSON types; one-line ``ValueError`` if it is not JSON."""
        config = parse_json(read_document_bytes(self.config), str(self.config), "fetch the autoencoder again")
        if not isinstance(config, dict):
            raise ValueError(f"{self.config} holds no JSON object; fetch the autoencoder again")
        return config


def fetch_network(name: str) -> NetworkFiles:
    """Finds an autoencoder.

    Args:
        name: a folder with config.json and diffusion_pytorch_model.safetensors; a .safetensors file with config.json
            beside it; or a hub name, ``owner/model`` or ``owner/model/subfolder``.

    Raises:
        FileNotFoundError: a folder or file lacks its part.
        ValueError: a hub that can't be reached, or that has no such model.
    """
    path = Path(name)
    if path.is_dir():
        return _checked(NetworkFiles(path / CONFIG_NAME, path / WEIGHTS_NAME))
    if path.suffix == ".safetensors":
        return _checked(NetworkFiles(path.parent / CONFIG_NAME, path))
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts) or name.startswith((".", "/")):
        raise FileNotFoundError(
            f"no autoencoder {name!r}: it is no folder, no .safetensors file, and no hub name (owner/model or "
            "owner/model/subfolder)"
        )
    return _from_hub("/".join(parts[:2]), parts[2] if len(parts) == 3 else None)


def _checked(files: NetworkFiles) -> NetworkFiles:
    for path in (files.config, files.weights):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing; an autoencoder is {CONFIG_NAME} and {WEIGHTS_NAME}, as diffusers saves it"
            )
    return files


def _from_hub(repository: str, subfolder: str | None) -> NetworkFiles:
    """Downloads (or finds in the hub's cache) the two files."""
    diffusers()  # brings huggingface_hub, and says so where it is missing
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # it prints every retry; what failed in the end is said below
    try:
        paths = [
            Path(hf_hub_download(repository, file, subfolder=subfolder, etag_timeout=10))
            for file in (CONFIG_NAME, WEIGHTS_NAME)
        ]
    except Exception as error:  # the hub's client raises its own, requests' and OS errors
        reason = shortened(str(error)) or type(error).__name__
        raise ValueError(
            f"autoencoder {repository!r} can't be fetched from the hub ({reason}); download it elsewhere and give its "
            "folder"
        ) from None
    return NetworkFiles(*paths)
