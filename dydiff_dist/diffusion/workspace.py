"""Memory that one call of a loop leaves to the next: on a CPU new memory costs more than the work (docs/kernels.md)."""

from torch import Tensor


class Workspace:
    """Results of an earlier call that nobody reads any more, by what they are; to be written again where they fit.

    Whoever passes one to `DiffusionProcess.add_noise` says that the results of its previous call with it are done with.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor) -> Tensor | None:
        """Memory for a result of the shape, dtype and device of ``like``; None where a new one must be made."""
        kept = self._kept.get(name)
        fits = kept is not None and (kept.shape, kept.dtype, kept.device) == (like.shape, like.dtype, like.device)
        return kept if fits else None

    def keep(self, name: str, result: Tensor) -> Tensor:
        """``result``, remembered for the next ``take(name)``."""
        self._kept[name] = result
        return result
