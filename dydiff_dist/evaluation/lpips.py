"""LPIPS (Zhang et al. 2018) without torchvision, from backbone weights that the user has.

d(x, y) = Σ_layers mean over pixels of Σ_channels w (x̂ - ŷ)², x̂ the features of a layer over their length along
channels. The linear weights w of version 0.1 come with torchmetrics; the backbone is torchvision's AlexNet or VGG-16
file (``alexnet-owt-….pth``, ``vgg16-….pth``), as torch hub keeps it in its cache, or the same as safetensors. No
weights come with this project, and no pickle is executed. torchmetrics' own LPIPS needs torchvision and downloads the
backbone.
Letters: B frames, C channels, H W height and width, S lead times.
"""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dydiff_dist.arrays import read_safetensors
from dydiff_dist.evaluation.suites import Suite, Terms
from dydiff_dist.files import file_sha256
from dydiff_dist.quoting import first_line


class _Backbone(NamedTuple):
    layers: Callable[[], nn.Sequential]
    """torchvision's ``features`` as far as they are used, numbered as there."""
    stages: tuple[int, ...]
    """Layers, each a ReLU, after which features are taken."""
    min_pixels: int
    """Smallest edge of an image that passes through."""


def _alexnet() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for channels, width in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers[:-1])


_BACKBONES = {
    "alex": _Backbone(_alexnet, (1, 4, 7, 9, 11), min_pixels=31),
    "vgg": _Backbone(_vgg16, (3, 8, 15, 22, 29), min_pixels=16),
}
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the released networks' input, in units where images span -1..1."""


class Lpips(nn.Module):
    """The distance of two batches of images."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str, weights: dict[str, Tensor], heads: list[Tensor]):
        """
        Args:
            net: "alex" or "vgg".
            weights: of torchvision's ``features``, ``N.weight`` and ``N.bias``.
            heads: w of each stage, (C,).
        """
        super().__init__()
        self.net, self.min_pixels, self._stages = net, _BACKBONES[net].min_pixels, _BACKBONES[net].stages
        self.layers = _empty_layers(net)
        self.layers.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
        self.layers.requires_grad_(False)
        for stage, head in enumerate(heads):
            self.register_buffer(f"head_{stage}", head.float())
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])

    def features(self, images: Tensor) -> list[Tensor]:
        """Unit-length features of every stage, (B, C, h, w), of images (B, 3, H, W) in -1..1."""
        x, found = (images - self.shift) / self.scale, []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self._stages:
                found.append(x / torch.sqrt(1e-8 + x.square().sum(dim=1, keepdim=True)))
        return found

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances (B,) of images (B, 3, H, W) in -1..1; 0 for equal ones. Differentiable, as a loss."""
        distance = images.new_zeros(len(images))
        for stage, (x, y) in enumerate(zip(self.features(images), self.features(others), strict=True)):
            weighted = (x - y).square() * self.get_buffer(f"head_{stage}")[:, None, None]
            distance = distance + weighted.sum(dim=1).mean(dim=(1, 2))
        return distance


def load_lpips(path: str | Path, device: torch.device | str = "cpu") -> tuple[Lpips, str]:
    """(network, SHA-256 of the backbone's file) from a file of AlexNet or VGG-16 weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of tensors, or of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"backbone {path} does not exist; give torchvision's alexnet-owt-*.pth or vgg16-*.pth")
    found = _read_tensors(path).items()
    weights = {name.removeprefix("features."): value for name, value in found if name.startswith("features.")}
    net = next((net for net in _BACKBONES if _shapes(weights) == _shapes(_empty_layers(net).state_dict())), None)
    if net is None:
        raise ValueError(
            f"{path} is neither torchvision's AlexNet nor its VGG-16 (it holds {len(weights)} tensors features.*)"
        )
    with (files("torchmetrics") / "functional" / "image" / "lpips_models" / f"{net}.pth").open("rb") as file:
        linear = torch.load(file, map_location="cpu", weights_only=True)
    heads = [linear[f"lin{stage}.model.1.weight"].flatten() for stage in range(5)]
    return Lpips(net, weights, heads).eval().to(device), file_sha256(path)


def lpips_suite(lpips: Lpips, sha256: str, data_range: float) -> Suite:
    """LPIPS per frame: averaged over members, and of the member with the best clip.

    Args:
        lpips: the network.
        sha256: of the backbone's file, for the record.
        data_range: largest value of the frames, whose least is 0; forecasts are clipped to it.
    """

    def images(frames_SCHW: np.ndarray) -> Tensor:
        values = np.clip(frames_SCHW / data_range, 0, 1).astype(np.float32) * 2 - 1
        return torch.from_numpy(values).to(lpips.shift.device).expand(-1, 3, -1, -1)

    @torch.no_grad()
    def measure(members: np.ndarray, truth: np.ndarray) -> Terms:
        if min(truth.shape[-2:]) < lpips.min_pixels:
            raise ValueError(
                f"LPIPS with {lpips.net} needs frames of at least {lpips.min_pixels} pixels, they are "
                f"{truth.shape[-2]}x{truth.shape[-1]}; leave it out"
            )
        real = images(truth)
        by_member = np.stack([lpips(images(member), real).double().cpu().numpy() for member in members])
        return {"lpips": by_member.mean(axis=0), "lpips_best_member": by_member[by_member.mean(axis=1).argmin()]}

    return Suite(
        "lpips",
        measure,
        dict,
        ("lpips", "lpips_best_member"),
        protocol={
            "network": lpips.net,
            "backbone_sha256": sha256,
            "linear_weights": "version 0.1, as torchmetrics ships them",
            "images": f"0..{data_range:g} as -1..1, at their own size, one channel repeated",
            "members": "averaged over members; best_member takes the member with the best mean over lead times",
        },
    )


def _empty_layers(net: str) -> nn.Sequential:
    """Without memory, and without random numbers drawn to fill it."""
    with torch.device("meta"):
        return _BACKBONES[net].layers()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a file of tensors: {first_line(error)}") from None
    except Exception as error:  # unpickling errors have no common class; none of them may run what the file holds
        raise ValueError(f"{path} is not a plain file of tensors ({type(error).__name__})") from None
