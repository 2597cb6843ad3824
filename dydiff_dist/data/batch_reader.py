"""One batch: positions of the global order to arrays, with damaged samples replaced or raised."""

import numpy as np

from dydiff_dist.data.augment import SampleTransform
from dydiff_dist.data.config import DataConfig
from dydiff_dist.data.order import SampleOrder
from dydiff_dist.data.shard_set import DamagedSampleError, ShardSet
from dydiff_dist.data.shard_writer import Sample

MAX_REPLACEMENTS = 100
"""Draws for one position before a data set counts as beyond repair."""


class BatchReader:
    """Reads batches: a list of positions of the global order to arrays."""

    def __init__(self, shards: ShardSet, config: DataConfig, seed: int):
        self.shards = shards
        self.config = config
        self.seed = seed
        manifest = shards.manifest
        self.transform = SampleTransform(config, manifest.frames, manifest.shift, manifest.scale)
        self.order = SampleOrder(manifest, seed, config.shuffle_window_bytes)

    def shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """The float32 fields of a batch."""
        frames = (batch_size, *self.transform.frame_shape)
        shapes: dict[str, tuple[int, ...]] = {"frames": frames}
        if self.shards.schema.has_logvar:
            shapes["logvar"] = frames
        if self.shards.schema.num_actions:
            shapes["actions"] = (batch_size, self.config.num_frames, self.shards.schema.num_actions)
        return shapes

    def read(self, positions: list[int], fields: dict[str, np.ndarray]) -> tuple[list[str], list[str]]:
        """Reads the samples at ``positions`` into the rows of ``fields``, arrays of ``shapes``.

        Returns:
            Their keys, and a message per damaged sample.

        Raises:
            DamagedSampleError: where the configuration wants the run to stop.
        """
        draws = self.transform.draw(self.seed, positions)
        keys: list[str] = []
        damage: list[str] = []
        for row, position in enumerate(positions):
            sample = self._read(position, damage)
            keys.append(sample.key)
            own_draws = None if draws is None else draws[row]
            self.transform.write_frames(sample.frames, own_draws, fields["frames"][row])
            if sample.logvar is not None:
                self.transform.write_logvar(sample.logvar, own_draws, fields["logvar"][row])
            if sample.actions is not None:
                self.transform.write_actions(sample.actions, own_draws, fields["actions"][row])
        return keys, damage

    def _read(self, position: int, damage: list[str]) -> Sample:
        """The sample at a position; for a damaged one, named in ``damage``, a draw from all samples."""
        address = self.order.address(position)
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return self.shards.read(address)
            except DamagedSampleError as error:
                if self.config.damaged_samples == "error":
                    raise
                damage.append(str(error))
                address = self.shards.address(self.order.replacement(position, attempt))
        raise DamagedSampleError(f"{MAX_REPLACEMENTS} samples in a row are damaged; the last: {damage[-1]}")
