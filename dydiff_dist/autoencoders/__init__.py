"""Autoencoders between frames and latents, around diffusers' classes.

load_autoencoder(folder)         an autoencoder with its description, ready to encode and decode
fetch_network(name)              a bare network from a folder, a safetensors file or the Hugging Face hub
save_autoencoder(folder, …)      writes one: diffusers' own files, and autoencoder.json beside them
"""

from dydiff_dist.autoencoders.autoencoder import Autoencoder, LatentGaussian
from dydiff_dist.autoencoders.config import AutoencoderConfig, AutoencoderModelConfig
from dydiff_dist.autoencoders.description import AutoencoderDescription, read_description
from dydiff_dist.autoencoders.files import load_autoencoder, save_autoencoder
from dydiff_dist.autoencoders.networks import build_network, fetch_network

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderDescription",
    "AutoencoderModelConfig",
    "LatentGaussian",
    "build_network",
    "fetch_network",
    "load_autoencoder",
    "read_description",
    "save_autoencoder",
]
