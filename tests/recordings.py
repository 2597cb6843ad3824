"""CUDA graphs without a GPU: a recorder that is as strict, for ``Replay``."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Tape(TorchDispatchMode):
    """What is calculated, to be calculated again into the same memory; what the host did between is not on it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def play(self):
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_iter(out), tree_iter(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # no view, not in place
                    old.copy_(new)


class Recorder:
    """CUDA's part in it: plays what a run has calculated, and remembers how often."""

    def __init__(self):
        self.recorded = self.played = 0

    def __call__(self, run):
        self.recorded += 1
        with Tape() as tape:
            result = run()

        def play():
            self.played += 1
            tape.play()

        return play, result
