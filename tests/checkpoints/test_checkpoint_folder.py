"""A checkpoint's folder: ranges cut anywhere read back in any other cut, and no damage goes unseen."""

import itertools
import subprocess

import numpy as np
import pytest
import torch
from checkpoint_files import SHAPES, whole_state, write_checkpoint
from safetensors.torch import load_file

from dydiff_dist.checkpoints import folder as checkpoint_folder
from dydiff_dist.checkpoints.folder import CheckpointReader, DamagedError
from dydiff_dist.engine.deepspeed.partitions import Piece
from dydiff_dist.files import TensorSpec, file_order, file_sha256, write_tensor_file


def test_any_range_reads_back_whoever_wrote_it(tmp_path):
    state, total = whole_state(), sum(torch.Size(shape).numel() for shape in SHAPES.values())
    generator = np.random.default_rng(0)
    for case in range(8):
        cuts = [0, *sorted(generator.integers(0, total + 1, size=case).tolist()), total]  # some ranks own nothing
        write_checkpoint(tmp_path / str(case), state, cuts, never_updated=("scale",))
        reader = CheckpointReader(tmp_path / str(case))
        for kind in ("weights", "average.ema"):
            for name in reader.shapes("model"):
                tensor = reader.read_whole("model", kind, name)
                assert torch.equal(tensor, state[kind][name]), (case, kind, name)
        for _ in range(20):
            start, end = sorted(generator.integers(0, 7 * 13 + 1, size=2))
            found = reader.read("model", "optimizer.exp_avg", Piece("a.weight", start, end - start, 0, 0))
            assert torch.equal(found, state["optimizer.exp_avg"]["a.weight"].view(-1)[start:end])
        assert reader.optimizer_steps("model", "b") == 3 and reader.optimizer_steps("model", "scale") is None
        with pytest.raises(ValueError, match=r"no elements 91 to 95 of weights of 'a\.weight'"):
            reader.read("model", "weights", Piece("a.weight", 90, 5, 0, 0))


def test_a_flipped_bit_or_a_lost_byte_anywhere_is_damage(tmp_path):
    folder = tmp_path / "step_000003"
    write_checkpoint(folder, whole_state(), [0, 50, 124 - 4, 124 - 4])
    generator = np.random.default_rng(0)
    files = sorted(path for path in folder.iterdir())
    assert {path.name for path in files} == {
        "rank_00000.safetensors",
        "rank_00001.safetensors",
        "rank_00002.safetensors",
        "layout.json",
        "complete.json",
        "SHA256SUMS",
    }

    def is_damaged() -> bool:
        try:
            checkpoint_folder.read_facts(folder)
            return bool(checkpoint_folder.damaged_files(folder))
        except (DamagedError, ValueError):
            return True

    assert not is_damaged()
    for path in files:
        data = path.read_bytes()
        for position in generator.integers(0, len(data), size=30):
            flipped = bytearray(data)
            flipped[position] ^= 1 << generator.integers(8)
            path.write_bytes(flipped)
            assert is_damaged(), (path.name, position)
        for damaged in (data[:-1], data + b" ", b""):
            path.write_bytes(damaged)
            assert is_damaged() or path.name == "SHA256SUMS", path.name
        path.unlink()
        assert is_damaged(), path.name
        path.write_bytes(data)
    assert not is_damaged()


def test_the_ranks_share_the_reading_of_all_files(tmp_path):
    folder = tmp_path / "step_000003"
    write_checkpoint(folder, whole_state(), [0, 20, 40, 60, 120])
    for path in folder.glob("rank_*"):
        path.write_bytes(path.read_bytes()[:-1] + b"\xaa")
    found = [checkpoint_folder.damaged_files(folder, rank, 3) for rank in range(3)]
    assert sorted(itertools.chain(*found)) == [
        f"rank_{rank:05d}.safetensors differs from its SHA-256" for rank in range(4)
    ]


def test_sums_are_those_of_sha256sum_and_files_those_of_safetensors(tmp_path):
    folder, state = tmp_path / "step_000003", whole_state()
    write_checkpoint(folder, state, [0, 120])
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count("OK") == 3
    stored = load_file(folder / "rank_00000.safetensors")
    assert torch.equal(stored["model/average.ema/b"], state["average.ema"]["b"].view(-1))


def test_every_dtype_is_written_as_the_library_reads_it(tmp_path):
    tensors = {
        str(dtype): torch.arange(5).to(dtype)
        for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    } | {
        str(dtype): torch.randn(2, 3).to(dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
    tensors |= {"empty": torch.empty(0, 4), "scalar": torch.tensor(3.0), "transposed": torch.randn(3, 5).T}
    specs = {name: TensorSpec(dtype=t.dtype, shape=tuple(t.shape)) for name, t in tensors.items()}
    write_tensor_file(tmp_path / "x.safetensors", specs, (tensors[name] for name in file_order(specs)))
    stored = load_file(tmp_path / "x.safetensors")
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor), name


def test_a_folder_that_points_outside_itself_is_refused(tmp_path):
    folder = tmp_path / "step_000003"
    write_checkpoint(folder, whole_state(), [0, 120])
    (tmp_path / "other").write_text("")
    facts = (folder / "complete.json").read_text().replace('"layout.json": ', '"../other": 0, "layout.json": ')
    (folder / "complete.json").write_text(facts)
    sums = {name: file_sha256(folder / name) for name in ("complete.json", "layout.json", "rank_00000.safetensors")}
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    with pytest.raises(DamagedError, match="outside of the folder"):
        checkpoint_folder.read_facts(folder)
