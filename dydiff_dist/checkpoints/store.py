"""Checkpoints that are either complete or invisible, of any number of ranks, written while training goes on.

Every rank copies its share to the host's memory and hands it to a thread, which writes, flushes and reads back one
file under the checkpoint's temporary name and then leaves a marker beside it. Rank 0's thread waits for all markers,
seals the folder (``checkpoints/folder.py`` says with what), renames it, moves ``latest``, and only then deletes
older ones. The threads use no collectives, so they never meet the training's. The ranks agree on how a save went when
they wait for it together, at the latest before the next one.
"""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from dydiff_dist.checkpoints import folder as checkpoint_folder
from dydiff_dist.checkpoints.background_write import BackgroundWrite, HostBuffer
from dydiff_dist.checkpoints.folder import CheckpointReader, DamagedError
from dydiff_dist.checkpoints.position import RunPosition
from dydiff_dist.checkpoints.run_lock import lock_run
from dydiff_dist.engine.state import EngineState
from dydiff_dist.errors import reason_and_advice
from dydiff_dist.files import TensorSpec, file_order, file_sha256, remove_partials, write_tensor_file, write_text
from dydiff_dist.ranks.collectives import barrier, gather_objects, raise_together
from dydiff_dist.ranks.world import World

logger = logging.getLogger(__name__)

_MARKER_POLL_SEC = (0.02, 1.0)
"""First and longest pause between two looks for the other ranks' markers."""
_LONGEST_SHARE_SEC, _LONGEST_FINISH_SEC = 60.0, 5.0
"""On the way out after an error: the longest wait for this rank's share, and then for the others'."""


@dataclass(frozen=True, kw_only=True)
class SaveReport:
    """A save as the training loop feels it."""

    path: Path
    """The checkpoint, complete once ``CheckpointStore.wait`` has returned."""
    pause_sec: float
    """Seconds for which training stood still: waiting for the save before, and copying."""
    num_bytes: int
    """Bytes of this rank's share."""

    def __str__(self) -> str:
        return f"{self.path} ({self.num_bytes / 2**20:.1f} MiB a rank, training paused for {self.pause_sec:.3f} s)"


class CheckpointStore:
    """The checkpoints of one run. Every public method is collective: all ranks call it at the same point.

    Args:
        folder: ``checkpoints/`` of the run; made where needed, and locked against other trainings of the run.
        world: the ranks; all see the folder.
        states: what is kept, by engine.
        keep_last: so many newest checkpoints stay.
        keep_every: checkpoints whose step is a multiple of it stay for good; 0 for none.
        asynchronous: whether training goes on while a checkpoint is written, at the price of a copy of the rank's
            share in the host's memory.

    Raises:
        ValueError: the folder can't be written, or another training has it.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        states: Mapping[str, EngineState],
        *,
        keep_last: int,
        keep_every: int = 0,
        asynchronous: bool = True,
    ):
        self.folder, self.world, self.states = folder, world, states
        self.keep_last, self.keep_every, self.asynchronous = keep_last, keep_every, asynchronous
        self._host = HostBuffer(pinned=world.device.type == "cuda")
        self._writing: BackgroundWrite | None = None
        self._lock: IO[str] | None = self._on_main(self._open_folder, f"output_dir {folder.parent} can't be written")

    def save(
        self,
        position: RunPosition,
        config: dict[str, Any],
        exported: dict[str, Any] | None = None,
        data_sha256: str | None = None,
    ) -> SaveReport:
        """Begins to write the state at ``position``; with ``asynchronous`` off, also waits until it is written.

        Args:
            position: the same on every rank.
            config: the run's, as JSON types.
            exported: what the description of a model exported from this checkpoint says, as JSON types.
            data_sha256: of the data that the run is trained on.

        Raises:
            ValueError: this save or the one before failed; older checkpoints are untouched.
        """
        start = time.perf_counter()
        self.wait()
        final = self.folder / checkpoint_folder.folder_name(position.step)
        partial_folder = self._partial(final)
        self._on_main(lambda: _make_empty(partial_folder), f"checkpoint {final} can't be written")
        specs, pieces, tensors = _share(self.states, self.world)
        facts = {
            "position": asdict(position),
            "config": config,
            "exported": exported,
            "data_sha256": data_sha256,
            "numbers": {name: state.engine.numbers() for name, state in self.states.items()},
        }
        layout = {name: state.layout() for name, state in self.states.items()}
        data = self._host.copy(tensors) if self.asynchronous else (tensor.cpu() for tensor in tensors)
        self._writing = BackgroundWrite(
            final,
            write=lambda: self._write_share(partial_folder, specs, data, pieces),
            finish=(lambda cancelled: self._finish(partial_folder, final, facts, layout, cancelled))
            if self.world.is_main
            else None,
        )
        if not self.asynchronous:
            self.wait()
        num_bytes = sum(spec.num_bytes for spec in specs.values())
        return SaveReport(path=final, pause_sec=time.perf_counter() - start, num_bytes=num_bytes)

    def wait(self) -> None:
        """Returns when the last save is complete on the disk.

        Raises:
            ValueError: it failed, on every rank alike; what was written of it is removed.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            raise_together(writing.share_failure())
            raise_together(writing.finish_failure())
        except ValueError:
            writing.cancel()
            if self.world.is_main:
                shutil.rmtree(self._partial(writing.final), ignore_errors=True)
            raise

    def has_failed(self) -> bool:
        """Whether this rank knows that the save in flight has failed; not collective, ``wait`` says why."""
        return self._writing is not None and self._writing.failure is not None

    def wait_briefly(self, longest_sec: float = _LONGEST_SHARE_SEC) -> None:
        """Lets a save in flight finish, on the way out after an error: not collective, and not for ever, as other ranks
        may be gone.

        Args:
            longest_sec: for this rank's share.
        """
        if self._writing is not None:
            self._writing.wait_at_most(min(longest_sec, _LONGEST_SHARE_SEC), _LONGEST_FINISH_SEC)

    def load_latest(self, check_config: Callable[[dict[str, Any], str | None], None]) -> RunPosition:
        """Loads the newest whole checkpoint, of whatever number of ranks and ZeRO stage; returns its position.

        Damaged ones that are newer are named in the log and renamed to ``damaged_step_…``, out of the way.

        Args:
            check_config: called with the checkpoint's configuration and the SHA-256 of its data before anything is
                loaded; raises to refuse it.

        Raises:
            ValueError: ``check_config`` refuses it, or there are checkpoints and all are damaged.
        """
        self.wait()
        damaged: dict[Path, str] = {}
        for folder in reversed(gather_objects(checkpoint_folder.list_checkpoints(self.folder))[0]):
            damage = self._damage(folder, check_config)
            if damage:
                damaged[folder] = damage
                continue
            self._set_aside(damaged, folder)
            return self._restore(CheckpointReader(folder))
        if damaged:
            raise ValueError(
                f"all checkpoints in {self.folder} are damaged ({_list_damage(damaged)}); bring one back, or set "
                "output_dir to a new folder to begin anew"
            )
        return RunPosition()

    def close(self) -> None:
        """Waits for the last save, and lets another training have the folder."""
        self.wait()
        if self._lock is not None:
            self._lock.close()

    @staticmethod
    def _partial(final: Path) -> Path:
        """The name under which a checkpoint is written."""
        return final.with_name(f".{final.name}.partial")

    def _on_main(self, action: Callable[[], Any], failure: str) -> Any:
        """Does ``action`` on rank 0 and returns its result there; if it fails, every rank raises the same error."""
        result, reason = None, None
        if self.world.is_main:
            try:
                result = action()
            except OSError as error:
                reason = f"{failure}: {reason_and_advice(error)} (output_dir)"
            except ValueError as error:
                reason = str(error)
        raise_together(reason)
        return result

    def _open_folder(self) -> IO[str]:
        """The folder's lock, and an end to what an interrupted save left behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = lock_run(self.folder)
        for old in self.folder.glob(".step_*.replaced"):
            final = self.folder / old.name.removeprefix(".").removesuffix(".replaced")
            if not final.exists():
                old.rename(final)
        for leftover in self.folder.glob(".step_*"):
            shutil.rmtree(leftover)
        remove_partials(self.folder / checkpoint_folder.LATEST)
        return lock

    def _write_share(self, partial: Path, specs: dict, data: Iterable[Tensor], pieces: dict) -> None:
        """This rank's file and its marker; runs in the thread."""
        path = partial / checkpoint_folder.rank_file(self.world.rank)
        record = write_tensor_file(path, specs, data)
        if file_sha256(path) != record.sha256:
            raise DamagedError(f"{path.name} reads back differently from what was written")
        checkpoint_folder.write_marker(partial, self.world.rank, record, pieces)

    def _finish(self, partial: Path, final: Path, facts: dict, engines: dict, cancelled: threading.Event) -> None:
        """Seals what all ranks have written, gives it its name and deletes older ones; runs in rank 0's thread."""
        markers = {checkpoint_folder.marker_file(rank) for rank in range(self.world.world_size)}
        pause_sec, longest_sec = _MARKER_POLL_SEC
        # a listing, as network file systems remember absent names
        while not markers <= set(os.listdir(partial)):
            if cancelled.wait(pause_sec):
                return
            pause_sec = min(1.5 * pause_sec, longest_sec)
        checkpoint_folder.seal(partial, facts, engines, self.world.world_size)
        checkpoint_folder.replace_folder(partial, final)
        write_text(self.folder / checkpoint_folder.LATEST, final.name + "\n")
        self._prune()

    def _prune(self) -> None:
        """Deletes whole checkpoints that are neither among the newest nor to be kept for good."""
        whole = [folder for folder in checkpoint_folder.list_checkpoints(self.folder) if _is_whole(folder)]
        for folder in whole[: -self.keep_last]:
            if self.keep_every == 0 or checkpoint_folder.step_of(folder) % self.keep_every:
                hidden = folder.with_name(f".{folder.name}.deleted")
                folder.rename(hidden)  # so that half a deletion is never taken for damage
                shutil.rmtree(hidden)

    def _damage(self, folder: Path, check_config: Callable[[dict, str | None], None]) -> str:
        """What is damaged in a checkpoint, "" if nothing; the ranks share the reading and agree."""
        facts, damage = {}, ""
        try:
            facts = checkpoint_folder.read_facts(folder)
        except DamagedError as error:
            damage = str(error)
        damage = next(filter(None, gather_objects(damage)), "")
        if damage:
            return damage
        check_config(facts["config"], facts.get("data_sha256"))
        found = checkpoint_folder.damaged_files(folder, self.world.rank, self.world.world_size)
        return ", ".join(name for names in gather_objects(found) for name in names)

    def _set_aside(self, damaged: dict[Path, str], used: Path) -> None:
        """Says which checkpoints are damaged and which is used instead, and renames the damaged ones."""
        if damaged and self.world.is_main:
            logger.warning("damaged: %s; going back to %s", _list_damage(damaged), used)
            for folder in damaged:
                aside = folder.with_name(f"damaged_{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        barrier()

    def _restore(self, reader: CheckpointReader) -> RunPosition:
        """Gives every engine its state; the ranges are read as the present ranks need them."""
        for name, state in self.states.items():
            if name not in reader.engines:
                raise ValueError(f"{reader.folder} has {reader.engines}, not {name!r}; set output_dir to a new folder")
            _check_shapes(reader.shapes(name), state.partitions.shapes, reader.folder)
            state.restore(
                partial(reader.read, name),
                kinds=reader.kinds(name),
                steps=partial(reader.optimizer_steps, name),
                buffers=reader.buffers(name),
                numbers=reader.facts["numbers"][name],
            )
        barrier()  # nobody deletes what another still reads
        return RunPosition.of(reader.facts)


def _share(
    states: Mapping[str, EngineState], world: World
) -> tuple[dict[str, TensorSpec], dict[str, dict[str, list]], list[Tensor]]:
    """What this rank is to write: tensors' specs by key, pieces for the marker, and the tensors in file order."""
    tensors: dict[str, Tensor] = {}
    pieces: dict[str, dict[str, list]] = {}
    for engine, state in states.items():
        kinds, steps = state.kinds(), state.optimizer_steps()
        pieces[engine] = {}
        for piece in state.partitions.owned(world.rank):
            pieces[engine][piece.name] = [piece.start, piece.length, steps[piece.partition]]
            for kind, partitions in kinds.items():
                partition = partitions[piece.partition]
                if partition is not None:
                    key = checkpoint_folder.tensor_key(engine, kind, piece.name)
                    tensors[key] = partition[piece.offset : piece.offset + piece.length]
        if world.is_main:
            for name, buffer in state.partitions.buffers().items():
                tensors[checkpoint_folder.tensor_key(engine, checkpoint_folder.BUFFER, name)] = buffer
    specs = {key: TensorSpec(dtype=tensor.dtype, shape=tuple(tensor.shape)) for key, tensor in tensors.items()}
    return specs, pieces, [tensors[key].detach() for key in file_order(specs)]


def _check_shapes(stored: Mapping[str, tuple], present: Mapping[str, tuple], folder: Path) -> None:
    """Refuses another network, on every rank alike."""
    for name in {**stored, **present}:
        if stored.get(name) != present.get(name):
            raise ValueError(
                f"{folder} has {name!r} of shape {stored.get(name)}, this network has {present.get(name)}; set "
                "output_dir to a new folder"
            )


def _make_empty(folder: Path) -> None:
    """Makes an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _is_whole(folder: Path) -> bool:
    try:
        checkpoint_folder.read_facts(folder)
    except (DamagedError, ValueError):
        return False
    return True


def _list_damage(damaged: Mapping[Path, str]) -> str:
    return "; ".join(f"{folder.name}: {damage}" for folder, damage in damaged.items())
