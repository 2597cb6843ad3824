"""LPIPS (Zhang et al. 2018) without torchvision, from backbone weights that the user has.

d(x, y) = Σ_layers mean over pixels of Σ_channels w (x̂ - ŷ)², x̂ the features of a layer over their length along
channels. The linear weights w of version 0.1 come with torchmetrics; the backbone is torchvision's AlexNet or VGG-16
file (``alexnet-owt-….pth``, ``vgg16-….pth``), as torch hub keeps it in its cache, or the same as safetensors. No
weights come with this project, and no pickle is executed. torchmetrics' own LPIPS needs torchvision and downloads the
backbone.
Letters: B frames, C channels, H W height and width, S lead times.
"""

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from dydiff_dist.evaluation.suites import Suite, Terms
from dydiff_dist.files import file_sha256


class _Stage(NamedTuple):
    """Convolutions, each with a ReLU, after whose last one features are taken."""

    convolutions: tuple[int, ...]
    """Their numbers in torchvision's ``features``."""
    pools_first: bool = True
    stride: int = 1
    padding: int = 1


class _Backbone(NamedTuple):
    stages: tuple[_Stage, ...]
    pool: int
    """Window of the max-pooling, stride 2."""
    min_pixels: int

    def weight_names(self) -> set[str]:
        """As torchvision calls its tensors."""
        numbers = [number for stage in self.stages for number in stage.convolutions]
        return {f"features.{number}.{kind}" for number in numbers for kind in ("weight", "bias")}


_BACKBONES = {
    "alex": _Backbone(
        (
            _Stage((0,), pools_first=False, stride=4, padding=2),
            _Stage((3,), padding=2),
            _Stage((6,)),
            _Stage((8,), pools_first=False),
            _Stage((10,), pools_first=False),
        ),
        pool=3,
        min_pixels=31,
    ),
    "vgg": _Backbone(
        (
            _Stage((0, 2), pools_first=False),
            _Stage((5, 7)),
            _Stage((10, 12, 14)),
            _Stage((17, 19, 21)),
            _Stage((24, 26, 28)),
        ),
        pool=2,
        min_pixels=16,
    ),
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
            weights: torchvision's names, ``features.N.weight`` and ``.bias``.
            heads: w of each stage, (C,).
        """
        super().__init__()
        self.net, self._backbone = net, _BACKBONES[net]
        self.min_pixels = self._backbone.min_pixels  # smallest edge of an image that passes through the network
        for name, value in weights.items():
            self.register_buffer(name.replace(".", "_"), value.float())
        for stage, head in enumerate(heads):
            self.register_buffer(f"head_{stage}", head.float())
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])

    def features(self, images: Tensor) -> list[Tensor]:
        """Unit-length features of every stage, (B, C, h, w), of images (B, 3, H, W) in -1..1."""
        x, found = (images - self.shift) / self.scale, []
        for stage in self._backbone.stages:
            x = functional.max_pool2d(x, self._backbone.pool, 2) if stage.pools_first else x
            for number in stage.convolutions:
                weight, bias = (self.get_buffer(f"features_{number}_{kind}") for kind in ("weight", "bias"))
                x = functional.relu(functional.conv2d(x, weight, bias, stage.stride, stage.padding))
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
    weights = {name: value for name, value in _read_tensors(path).items() if name.startswith("features.")}
    net = next((name for name, backbone in _BACKBONES.items() if set(weights) == backbone.weight_names()), None)
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


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a file of tensors: {reason}") from None
    except Exception as error:  # unpickling errors have no common class; none of them may run what the file holds
        raise ValueError(f"{path} is not a plain file of tensors ({type(error).__name__})") from None
