"""A function of tensors, recorded by a GPU and played again without the host's work (CUDA graphs)."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Play = Callable[[], None]
Record = Callable[[Callable[[], Tensor]], tuple[Play, Tensor]]
"""A run of the function on memory that stays -> what plays it again, and the memory where its result then lies."""


class _Recording(NamedTuple):
    inputs: dict[str, Tensor]
    play: Play
    result: Tensor


class Replay:
    """Calls ``function``; from the second call with the same shapes on, as one recording.

    On the CPU, and where recording fails (the log says why), every call is a plain one. What the function reads beside
    its arguments must stay where it is, and it must do the same whatever the arguments hold: no look at a value on the
    host, and noise by names that are arguments, in memory (`NoiseCounter.words`).

    Args:
        function: of named tensors, some of which may be None; gives a tensor.
        record: how a run is recorded; None is CUDA's way on a GPU, and not at all elsewhere.
    """

    def __init__(self, function: Callable[..., Tensor], record: Record | None = None):
        self._function, self._record = function, record
        self._recordings: dict[tuple[object, ...], _Recording | None] = {}
        self._seen: set[tuple[object, ...]] = set()

    def __call__(self, **inputs: Tensor | None) -> Tensor:
        """The function's result, in memory of its own."""
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        record = self._record or (record_on_gpu if all(t.device.type == "cuda" for t in given.values()) else None)
        key = tuple((name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in given.items())
        if record is None or key not in self._seen:
            self._seen.add(key)
            return self._function(**inputs)
        if key not in self._recordings:
            self._recordings[key] = self._recorded(record, inputs)
        recording = self._recordings[key]
        if recording is None:
            return self._function(**inputs)
        for name, tensor in given.items():
            recording.inputs[name].copy_(tensor)
        recording.play()
        return recording.result.clone()

    def _recorded(self, record: Record, inputs: dict[str, Tensor | None]) -> _Recording | None:
        kept = {name: None if tensor is None else tensor.clone() for name, tensor in inputs.items()}
        try:
            play, result = record(lambda: self._function(**kept))
        except RuntimeError as error:
            logger.warning("a CUDA graph could not be recorded, every call runs by itself: %s", error)
            return None
        return _Recording({name: tensor for name, tensor in kept.items() if tensor is not None}, play, result)


def record_on_gpu(run: Callable[[], Tensor]) -> tuple[Play, Tensor]:
    """Records a run as a CUDA graph, after one on a stream of its own that compiles and allocates what it needs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph.replay, result
