"""The score of a small ensemble as a training loss: the almost fair CRPS of pixels, block means, Fourier coefficients.

Letters: B samples, M members, H W height and width.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dydiff_dist.strict_config import StrictConfig

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class EnsembleScoreConfig(StrictConfig):
    """What of an ensemble is scored in training, and how much each part counts."""

    alpha: float = Field(default=0.95, ge=0, le=1)
    """Share of the fair CRPS, which judges members as draws from a distribution; the rest is that of the ensemble as it
    stands. 1 lets all members but one go astray at no cost."""
    pool_weights: tuple[Weight, ...] = (1.0,)
    """Of frames averaged over blocks of 1, 2, 4, … pixels a side: pixels alone say nothing of how errors hang together
    in space."""
    spectral_weight: Weight = 0.0
    """Of each frame's Fourier coefficients, real and imaginary parts alike: what keeps fine structure."""

    @model_validator(mode="after")
    def _check_weights(self) -> "EnsembleScoreConfig":
        if not any((*self.pool_weights, self.spectral_weight)):
            raise ValueError("score has no weight above 0; give score.pool_weights or score.spectral_weight one")
        return self

    def check(self, height: int, width: int) -> None:
        """Refuses blocks that frames of this size don't hold.

        Raises:
            ValueError: more pool_weights than halvings.
        """
        largest = 2 ** (len(self.pool_weights) - 1)
        if largest > min(height, width):
            raise ValueError(
                f"score.pool_weights has {len(self.pool_weights)} entries, the last of blocks of {largest} pixels; the "
                f"network's frames have {height}x{width}, give fewer"
            )

    def weights(self) -> dict[str, float]:
        """Those above 0, by the names of `ensemble_scores`."""
        pools = {f"pool_{2**number}": weight for number, weight in enumerate(self.pool_weights)}
        return {name: weight for name, weight in (pools | {"spectral": self.spectral_weight}).items() if weight}


def almost_fair_crps(members_BM: Tensor, truth_B: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) CRPS + alpha fair CRPS of every value (Lang et al. 2024, arXiv 2412.15832).

        1/M Σ_j |x_j - y| - (1 - ε) / (2 M (M - 1)) Σ_j Σ_k |x_j - x_k|        ε = (1 - alpha) / M

    Args:
        members_BM: (B, M, *rest), M at least 2.
        truth_B: (B, *rest).
        alpha: share of the fair one, 0 to 1.

    Returns:
        (B, *rest), of the members' dtype; differentiable.

    Examples:
        >>> almost_fair_crps(torch.tensor([[0.0, 2.0]]), torch.tensor([1.0]), alpha=1.0)
        tensor([0.])
    """
    M = members_BM.shape[1]
    error = (members_BM - truth_B[:, None]).abs().mean(dim=1)
    first, second = torch.triu_indices(M, M, offset=1, device=members_BM.device)
    distance = (members_BM[:, first] - members_BM[:, second]).abs().sum(dim=1)
    return error - (1 - (1 - alpha) / M) / (M * (M - 1)) * distance


def ensemble_scores(members_BM: Tensor, truth_B: Tensor, alpha: float, names: Mapping[str, float]) -> dict[str, Tensor]:
    """The almost fair CRPS of ensembles and of what is derived from them, a mean over all values of a sample.

    Args:
        members_BM: (B, M, *rest, H, W) float.
        truth_B: (B, *rest, H, W).
        alpha: as in `almost_fair_crps`.
        names: ``pool_1``, ``pool_2``, …: of means over whole blocks so many pixels a side; ``spectral``: of the real
            Fourier transform's coefficients, normed so that those of white noise have its variance.

    Returns:
        name -> (B,).
    """
    scored = {name: almost_fair_crps(_seen(members_BM, name), _seen(truth_B, name), alpha) for name in names}
    return {name: score.flatten(1).mean(dim=1) for name, score in scored.items()}


def _seen(x: Tensor, name: str) -> Tensor:
    """What a part of the score looks at, (*leading, …) like ``x`` (*leading, H, W)."""
    if name == "spectral":
        return torch.view_as_real(torch.fft.rfft2(x, norm="ortho"))
    size = int(name.removeprefix("pool_"))
    return x if size == 1 else avg_pool2d(x.flatten(0, -4), size).unflatten(0, x.shape[:-3])
