"""Memory that one call of a loop leaves to the next: on a CPU new memory costs more than the work (docs/kernels.md)."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

Results = TypeVar("Results", bound=tuple[Any, ...])


class Workspace:
    """Results of an earlier call that nobody reads any more, by what they are; to be written again where they fit.

    Whoever passes one to `DiffusionProcess.add_noise` says that the results of its previous call with it are done with.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor) -> Tensor | None:
        """Memory for a result of the shape, dtype and device of ``like``; None where a new one must be made."""
        kept = self._kept.get(name)
        if kept is None or kept.requires_grad:  # what has a gradient is read once more, by the backward pass
            return None
        fits = (kept.shape, kept.dtype, kept.device) == (like.shape, like.dtype, like.device)
        return kept if fits else None

    def keep(self, name: str, result: Tensor) -> Tensor:
        """``result``, remembered for the next ``take(name)``."""
        self._kept[name] = result
        return result

    def take_all(self, results: Callable[..., Any], made: Mapping[str, bool], like: Tensor) -> Any:
        """Memory for several results as ``results(*memory)``, None for each that is not made; None if there is none."""
        memory = [self.take(name, like) if is_made else None for name, is_made in made.items()]
        return None if memory[0] is None else results(*memory)

    def keep_all(self, results: Results, made: Mapping[str, bool]) -> Results:
        """``results``, a tuple, those that were made remembered."""
        for (name, is_made), result in zip(made.items(), results, strict=True):
            if is_made and result is not None:
                self.keep(name, result)
        return results
