"""LPIPS with random weights against torchmetrics' own calculation, whose torchvision backbone is rebuilt here."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dydiff_dist.evaluation import ForecastCase, evaluate
from dydiff_dist.evaluation.lpips import load_lpips, lpips_suite


def _features(net: str) -> nn.Sequential:
    """Layers as torchvision numbers them, with random weights."""
    torch.manual_seed(0)
    if net == "alex":
        convolutions = [
            (3, 64, 11, 4, 2),
            (64, 192, 5, 1, 2),
            (192, 384, 3, 1, 1),
            (384, 256, 3, 1, 1),
            (256, 256, 3, 1, 1),
        ]
        layers: list[nn.Module] = []
        for number, sizes in enumerate(convolutions):
            layers += [nn.Conv2d(*sizes[:3], stride=sizes[3], padding=sizes[4]), nn.ReLU(inplace=False)]
            layers += [nn.MaxPool2d(3, 2)] if number in (0, 1, 4) else []
        return nn.Sequential(*layers)
    layers, channels = [], 3
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=False)]
            channels = width
    return nn.Sequential(*layers)


def _saved(net: str, folder: Path, suffix: str = ".pth") -> Path:
    weights = {f"features.{name}": value for name, value in _features(net).state_dict().items()}
    weights["classifier.1.weight"] = torch.zeros(3, 3)  # the files hold more than the backbone
    path = folder / f"{net}{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    return path


@pytest.mark.parametrize("net", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_distances_equal_torchmetrics(net: str, tmp_path, monkeypatch) -> None:
    from torchmetrics.functional.image import lpips as theirs

    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: _features(net))
    reference = theirs._LPIPS(pretrained=True, net=net, eval_mode=True)
    images, others = (torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (1, 2))
    network, _ = load_lpips(_saved(net, tmp_path))
    with torch.no_grad():
        wanted = reference(images, others).flatten()
    # the same float32 convolutions; sums over channels and pixels in another order
    torch.testing.assert_close(network(images, others), wanted, rtol=1e-4, atol=1e-7)
    assert network.net == net and network(images, images).abs().max() == 0


def test_the_suite_averages_members_and_picks_the_best(tmp_path) -> None:
    network, sha256 = load_lpips(_saved("alex", tmp_path, ".safetensors"))
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 255, (2, 1, 32, 32))
    members = np.stack([truth, truth + rng.normal(0, 40, truth.shape)])
    evaluation = evaluate([ForecastCase(0, "k", truth, truth, members)], suites=[lpips_suite(network, sha256, 255.0)])
    overall = evaluation.overall("forecast")
    assert overall["lpips_best_member"] == 0 < overall["lpips"]
    assert evaluation.protocol["scores"]["lpips"]["backbone_sha256"] == sha256
    with pytest.raises(ValueError, match="LPIPS with alex needs frames of at least 31 pixels, they are 16x16"):
        evaluate(
            [ForecastCase(0, "k", truth[..., :16, :16], truth[..., :16, :16], members[..., :16, :16])],
            suites=[lpips_suite(network, sha256, 255.0)],
        )


def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path) -> None:
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"features.0.weight": Harmful()}, tmp_path / "harmful.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("text")
    for name, message in (
        ("harmful.pth", "harmful.pth is not a plain file of tensors"),
        ("other.pth", "other.pth is neither torchvision's AlexNet nor its VGG-16 (it holds 1 tensors features.*)"),
        ("text.pth", "text.pth is not a plain file of tensors"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            load_lpips(tmp_path / name)
    assert not (tmp_path / "harm").exists()
    with pytest.raises(FileNotFoundError, match="give torchvision's alexnet-owt"):
        load_lpips(tmp_path / "none.pth")
