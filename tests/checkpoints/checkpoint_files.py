"""Checkpoints written from plain tensors, as if by ranks that own any stretch of them."""

import itertools
from pathlib import Path

import torch

from dydiff_dist.checkpoints import folder as checkpoint_folder
from dydiff_dist.files import TensorSpec, file_order, file_sha256, write_tensor_file

SHAPES = {"a.weight": (7, 13), "a.bias": (13,), "scale": (), "b": (5, 1, 3)}
KINDS = ("weights", "optimizer.exp_avg", "average.ema")


def whole_state(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Kind -> parameter -> values."""
    generator = torch.Generator().manual_seed(seed)
    return {kind: {name: torch.randn(s, generator=generator) for name, s in SHAPES.items()} for kind in KINDS}


def write_checkpoint(
    folder: Path, state: dict, cuts: list[int], *, never_updated: tuple[str, ...] = (), facts: dict | None = None
) -> None:
    """Writes ``state`` as ranks would that own the elements between ``cuts`` of all parameters laid end to end."""
    folder.mkdir(parents=True)
    for rank, (begin, end) in enumerate(itertools.pairwise(cuts)):
        tensors, pieces, position = {}, {}, 0
        for name, tensor in state["weights"].items():
            first, last = max(begin, position) - position, min(end, position + tensor.numel()) - position
            if first < last:
                steps = None if name in never_updated else 3
                pieces[name] = [first, last - first, steps]
                for kind in KINDS:
                    if steps is not None or not kind.startswith("optimizer"):
                        key = checkpoint_folder.tensor_key("model", kind, name)
                        tensors[key] = state[kind][name].reshape(-1)[first:last]
            position += tensor.numel()
        specs = {key: TensorSpec(dtype=t.dtype, shape=tuple(t.shape)) for key, t in tensors.items()}
        path = folder / checkpoint_folder.rank_file(rank)
        record = write_tensor_file(path, specs, (tensors[key] for key in file_order(specs)))
        assert (record.num_bytes, record.sha256) == (path.stat().st_size, file_sha256(path))
        checkpoint_folder.write_marker(folder, rank, record, {"model": pieces})
    shapes = {name: list(tensor.shape) for name, tensor in state["weights"].items()}
    engines = {"model": {"shapes": shapes, "kinds": KINDS, "buffers": []}}
    checkpoint_folder.seal(folder, facts or {"config": {"width": 16}}, engines, len(cuts) - 1)
