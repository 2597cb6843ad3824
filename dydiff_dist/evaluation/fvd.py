"""Fréchet video distance (Unterthiner et al. 2018): features of clips by the user's own network, and their distance.

No weights come with this project: the user gives a TorchScript file. The I3D file of the field
(``i3d_torchscript.pt``) takes clips (N, 3, S, H, W) and has arguments ``rescale``, ``resize`` and ``return_features``;
another extractor needs only to take clips and return (N, D). Loading TorchScript runs the program in the file: only
take one from a source that you trust, and pin its SHA-256.
Letters: N clips, M members, S frames, C channels, H W height and width, D features.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dydiff_dist.files import file_sha256
from dydiff_dist.strict_config import StrictConfig

Divisor = Literal["n", "n-1"]
"""Of a covariance."""
CLIPS_AT_ONCE = 8
"""Clips that pass through the extractor together, always counted within one case: so features do not depend on what a
case is scored with."""


class FvdProtocol(StrictConfig):
    """Everything that changes an FVD, apart from the extractor and the number of clips."""

    include_history: bool = True
    """Whether clips begin with the given frames (of real and forecast clips alike) or hold forecast frames only."""
    size_pixels: int = 224
    """Edge that frames are resized to, bilinear without antialiasing, where the extractor doesn't resize itself."""
    covariance_divisor: Divisor = "n"
    """n, as the evaluation codes that use the I3D TorchScript file do, or n-1."""


class ClipExtractor:
    """A TorchScript feature extractor, loaded and called safely on current torch."""

    def __init__(
        self, path: str | Path, *, sha256: str | None = None, device: torch.device | str = "cpu", size_pixels: int = 224
    ):
        """
        Args:
            path: the TorchScript file. **Loading it runs code.**
            sha256: what the file must be; checked before it is loaded. None records it only.
            device: where it runs.
            size_pixels: as in ``FvdProtocol``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another file than pinned, not TorchScript, or one without a clip argument.
        """
        self.path, self.device, self.size_pixels = Path(path), torch.device(device), size_pixels
        if not self.path.is_file():
            raise FileNotFoundError(f"extractor {path} does not exist; give the TorchScript file of an I3D network")
        self.sha256 = file_sha256(self.path)
        if sha256 is not None and sha256.lower() != self.sha256:
            raise ValueError(f"extractor {path} has SHA-256 {self.sha256}, pinned is {sha256}; it was not loaded")
        try:
            self._module = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"{path} is not a TorchScript file: {_last_line(error)}") from None
        names = [argument.name for argument in self._module.forward.schema.arguments][1:]
        if not names:
            raise ValueError(f"the network in {path} takes no argument; give one that takes clips (N, 3, S, H, W)")
        self._clip_name = names[0]
        # Called by keyword: some exported networks lose positional arguments on newer torch.
        self._flags = {name: True for name in ("rescale", "resize", "return_features") if name in names}

    @torch.no_grad()
    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Features (N, D) float32 of clips (N, S, C, H, W) with values 0..255, C 1 or 3.

        Raises:
            ValueError: the network refuses such clips or returns something else.
        """
        parts = [self._features(clips[start : start + CLIPS_AT_ONCE]) for start in range(0, len(clips), CLIPS_AT_ONCE)]
        return np.concatenate(parts)

    def _features(self, clips: np.ndarray) -> np.ndarray:
        prepared = self._prepared(torch.from_numpy(clips.astype(np.float32)).to(self.device))
        try:
            # as it stands in the file: fused kernels of old networks fail on newer torch, and differ from call to call
            with torch.jit.optimized_execution(False):
                features = self._module(**{self._clip_name: prepared}, **self._flags)
        except RuntimeError as error:
            raise ValueError(
                f"{self.path} refuses clips of shape {tuple(prepared.shape)}: {_last_line(error)}; an I3D network "
                "needs about 10 frames or more"
            ) from None
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(clips):
            what = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"{self.path} returned {what} for {len(clips)} clips; expected (N, D)")
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"{self.path} returned features that are NaN or infinite")
        return features.float().cpu().numpy()

    def _prepared(self, clips: Tensor) -> Tensor:
        """(N, S, C, H, W) in 0..255 -> what the network takes, (N, 3, S, H, W)."""
        clips = clips.expand(-1, -1, 3, -1, -1) if clips.shape[2] == 1 else clips
        if "resize" not in self._flags:
            size = (self.size_pixels, self.size_pixels)
            flat = functional.interpolate(clips.flatten(0, 1), size=size, mode="bilinear", align_corners=False)
            clips = flat.unflatten(0, clips.shape[:2])
        if "rescale" not in self._flags:
            clips = clips / 127.5 - 1
        return clips.transpose(1, 2).contiguous()

    def protocol(self) -> dict:
        """What it is and what it does to the clips."""
        own = f"bilinear to {self.size_pixels}x{self.size_pixels}, no antialiasing"
        return {
            "extractor_sha256": self.sha256,
            "resize": "by the extractor" if "resize" in self._flags else own,
            "rescale": "by the extractor, from 0..255" if "rescale" in self._flags else "to -1..1",
            "features": "return_features=True" if "return_features" in self._flags else "its output",
            "called": f"by keyword {self._clip_name!r}, no fused kernels, float32",
        }


class Fvd:
    """Turns forecasts and truths into features; ``frechet_distance`` of all of them is the score."""

    def __init__(self, extractor: ClipExtractor, protocol: FvdProtocol, data_range: float = 255.0):
        """``data_range``: largest value of the frames, whose least is 0."""
        self.extractor, self.settings, self._to_255 = extractor, protocol, 255.0 / data_range

    def features(self, history: np.ndarray, futures: np.ndarray) -> np.ndarray:
        """(M, D) of clips with these futures (M, S, C, H, W) after one history (S_h, C, H, W).

        Values are clipped to the range of the data and rounded to 256 levels, as pictures are; no video file is
        between.
        """
        clips = futures
        if self.settings.include_history:
            given = np.broadcast_to(history, (len(futures), *history.shape))
            clips = np.concatenate([given, futures], axis=1)
        return self.extractor(np.rint(np.clip(clips * self._to_255, 0, 255)))

    def protocol(self, num_history: int, num_leads: int) -> dict:
        """Everything but the numbers of clips."""
        num_frames = num_leads + num_history * self.settings.include_history
        return {
            **self.settings.model_dump(mode="json", exclude={"size_pixels"}),
            **self.extractor.protocol(),
            "num_frames": num_frames,
            "values": "clipped to the data's range, rounded to 256 levels, never through a video file",
            "real_clips": "the truth of every scored case, once",
        }


def _last_line(error: Exception) -> str:
    """What went wrong: torch's messages begin with where."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def frechet_distance(first_ND: np.ndarray, second_ND: np.ndarray, divisor: Divisor = "n") -> float:
    """Squared 2-Wasserstein distance of the Gaussians with the sets' means and covariances (Dowson & Landau 1982).

    |m1 - m2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½). With Σ = Aᵀ A, A the centred features over √divisor, the last trace is the
    sum of the singular values of A1 A2ᵀ. So no covariance is formed and no root of a nearly singular matrix is drawn:
    it is as exact for fewer clips than features, where covariances have no full rank, as for many. All in float64.

    Args:
        first_ND, second_ND: features, at least two of each set, any real dtype; the sets may differ in size.
        divisor: of the covariances.

    Raises:
        ValueError: fewer than two clips.

    Examples:
        >>> features = np.array([[0.0], [2.0]])
        >>> frechet_distance(features, features + 3)
        9.0
    """
    (mean1, root1), (mean2, root2) = (_mean_and_root(x, divisor) for x in (first_ND, second_ND))
    between = np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    return float(np.square(mean1 - mean2).sum() + np.square(root1).sum() + np.square(root2).sum() - 2 * between)


def _mean_and_root(features_ND: np.ndarray, divisor: Divisor) -> tuple[np.ndarray, np.ndarray]:
    """(mean (D,), A with at most D rows and Aᵀ A the covariance)."""
    count = len(features_ND)
    if count < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 clips of each kind, there are {count}; score more cases")
    features = features_ND.astype(np.float64)
    mean = features.mean(axis=0)
    root = (features - mean) / np.sqrt(count if divisor == "n" else count - 1)
    return mean, root if count <= features.shape[1] else np.asarray(np.linalg.qr(root, mode="r"))
