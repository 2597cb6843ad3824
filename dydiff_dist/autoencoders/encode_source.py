"""Encoding shards: a source of the converters' machinery (``dydiff_dist.data.convert``) that reads pixel shards.

Each shard of pixels becomes one shard of latents, so a stopped encoding goes on shard by shard, and several processes
share the shards. Reading, encoding and writing overlap: worker threads read and encode batches ahead, across the ends
of shards, while the caller writes. A batch holds samples of one shard, hence of one shape, and on a CPU each batch is
calculated by one thread; so the bytes do not depend on the number of threads or processes.

Letters: B samples, S frames, s latent frames, C channels, A actions, r frames per latent frame.
"""

import itertools
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from dydiff_dist.autoencoders.autoencoder import Autoencoder, LatentGaussian
from dydiff_dist.data.augment import mirror
from dydiff_dist.data.manifest import FrameSchema, LatentsSchema, manifest_identity
from dydiff_dist.data.shard_set import DamagedSampleError, SampleAddress, ShardSet
from dydiff_dist.data.shard_writer import Sample
from dydiff_dist.data.source import BadItem, ShardTask, Source, schema_of
from dydiff_dist.strict_config import StrictConfig
from dydiff_kernels import NoiseCounter, Stream, normal

BATCHES_AHEAD = 2
"""Encoded batches that wait for the writer, beyond those being encoded."""

MIRROR_SUFFIX = "-mirrored"

Encoded = list[Sample | BadItem]


class EncodeSourceConfig(StrictConfig):
    """What is stored of the latents, and how they are calculated."""

    kind: Literal["posterior", "sample"] = "posterior"
    """posterior: mean and log-variance, from which training draws anew each time; sample: one draw, half the size."""
    mirror: bool = False
    """Also store the latents of every training sample's mirror image (left and right), where the data allow flips."""
    batch_frames: PositiveInt = 64
    """Frames encoded at once. It decides the last digits, so going on with another number is refused."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the autoencoder; latents are stored in float16 either way."""
    seed: NonNegativeInt = 0
    """Key of the noise of kind sample."""
    autoencoder_sha256: str = ""
    """The autoencoder's identity; the source fills it in."""
    damaged_samples: Literal["error", "skip"] = "error"
    """A damaged sample stops the encoding, or is left out and named."""


class EncodeSource(Source[EncodeSourceConfig]):
    """Latents of the splits of a set of pixel shards.

    Attributes:
        on_frames: hears of each encoded batch, from the thread that encoded it: frames, bytes of pixels.
    """

    name = "latents"
    refuses_other_inputs = True

    def __init__(
        self,
        splits: dict[str, ShardSet],
        autoencoder: Autoencoder,
        config: EncodeSourceConfig | None = None,
        num_workers: int = 1,
    ):
        """
        Args:
            splits: pixel shards by split.
            autoencoder: encodes them.
            config: what is stored; None is the default.
            num_workers: threads that read and encode.

        Raises:
            ValueError: the shards don't fit the autoencoder or the options.
        """
        sha256 = autoencoder.description.sha256
        super().__init__((config or EncodeSourceConfig()).model_copy(update={"autoencoder_sha256": sha256}))
        self.splits, self.autoencoder = splits, autoencoder
        self.on_frames: Callable[[int, int], None] = lambda num_frames, num_bytes: None
        for shards in splits.values():
            check_shards(shards, autoencoder, self.config)
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="encode")
        self._num_ahead = num_workers + BATCHES_AHEAD
        self._own = threading.local()
        self._batches: Iterator[tuple[ShardTask, list[SampleAddress]]] = iter(())
        self._pending: deque[tuple[ShardTask, Future[Encoded]]] = deque()
        self._num_mirrors = {split: 2 if self.config.mirror and split == "train" else 1 for split in splits}

    def plan(self) -> list[ShardTask]:
        """One shard of latents per shard of pixels, under the same name."""
        return [
            ShardTask(
                split,
                entry.name,
                (number, entry.sha256, entry.num_samples),
                self._estimated_bytes(split, entry.num_samples),
            )
            for split, shards in self.splits.items()
            for number, entry in enumerate(shards.manifest.shards)
        ]

    def expect(self, tasks: list[ShardTask]) -> None:
        """Lets the workers read ahead over all of ``tasks``."""
        self._batches = itertools.chain.from_iterable(map(self._batches_of, tasks))

    def read(self, task: ShardTask) -> Iterator[Sample | BadItem]:
        """The latents of one shard, in its order."""
        self._submit()
        if not self._pending or self._pending[0][0] != task:
            assert not self._pending, (task, self._pending[0][0])
            self.expect([task])
            self._submit()
        while self._pending and self._pending[0][0] == task:
            _, encoded = self._pending.popleft()
            samples = encoded.result()
            self._submit()
            yield from samples

    def num_frames(self, tasks: list[ShardTask]) -> int:
        """Pixel frames to be encoded for ``tasks``."""
        return sum(
            task.items[2] * self.splits[task.split].schema.num_frames * self._num_mirrors[task.split] for task in tasks
        )

    def close(self) -> None:
        """Gives up what is not encoded yet and ends the workers."""
        self._pool.shutdown(cancel_futures=True)

    def schema(self, sample: Sample) -> FrameSchema:
        """That of the latents; shifts are allowed where they are exact."""
        shifts = self.autoencoder.description.periodic and all(
            "periodic_shift" in shards.schema.allowed_augmentations for shards in self.splits.values()
        )
        return schema_of(
            sample,
            channels=tuple(f"latent_{channel}" for channel in range(sample.frames.shape[1])),
            units="of the autoencoder",
            allowed_augmentations=("periodic_shift",) if shifts else (),
        )

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The autoencoder's latent units, the same for every data set."""
        return self.autoencoder.description.latent_shift, self.autoencoder.description.latent_scale

    def latents(self, split: str) -> LatentsSchema:
        """Where the latents come from."""
        shards = self.splits[split]
        return LatentsSchema(
            autoencoder_sha256=self.autoencoder.description.sha256,
            source_frames=shards.schema,
            source_sha256=manifest_identity(shards.manifest),
            temporal_ratio=self.autoencoder.description.temporal_ratio,
            mirrored=self._num_mirrors[split] == 2,
        )

    def details(self) -> dict[str, Any]:
        """What the autoencoder is, for people."""
        description = self.autoencoder.description
        return {"autoencoder": {"network": description.network, **description.facts}}

    def _estimated_bytes(self, split: str, num_samples: int) -> int:
        schema = self.splits[split].schema
        description = self.autoencoder.description
        values = description.latent_frames(schema.num_frames) * np.prod(description.latent_shape(schema.shape))
        kinds = 2 if self.config.kind == "posterior" else 1
        sample_bytes = 2 * kinds * int(values) + 4 * schema.num_frames * schema.num_actions + 4096
        return num_samples * sample_bytes * self._num_mirrors[split]

    def _batches_of(self, task: ShardTask) -> Iterator[tuple[ShardTask, list[SampleAddress]]]:
        """A shard's samples in batches of about ``batch_frames`` frames, mirror images included."""
        frames_per_sample = self.splits[task.split].schema.num_frames * self._num_mirrors[task.split]
        at_once = max(1, self.config.batch_frames // frames_per_sample)
        shard, _, num_samples = task.items
        for first in range(0, num_samples, at_once):
            last = min(first + at_once, num_samples)
            yield task, [SampleAddress(shard, item) for item in range(first, last)]

    def _submit(self) -> None:
        """Keeps the workers busy."""
        while len(self._pending) < self._num_ahead:
            batch = next(self._batches, None)
            if batch is None:
                return
            self._pending.append((batch[0], self._pool.submit(self._encode_batch, *batch)))

    def _encode_batch(self, task: ShardTask, addresses: list[SampleAddress]) -> Encoded:
        """Reads and encodes some samples of one shard; runs in a worker."""
        results = [self._read_sample(task.split, address) for address in addresses]
        samples = [sample for sample in results if isinstance(sample, Sample)]
        if not samples:
            return results
        images = self._with_mirror_images(task.split, samples)
        frames = torch.from_numpy(np.stack([image.frames.astype(np.float32) for image in images]))
        posterior = self.autoencoder.encode_raw(self.autoencoder.to_pixels(frames))
        encoded = self._stored(task, addresses, images, posterior)
        self.on_frames(frames.shape[0] * frames.shape[1], sum(image.frames.nbytes for image in images))
        return [result for result in results if isinstance(result, BadItem)] + encoded

    def _read_sample(self, split: str, address: SampleAddress) -> Sample | BadItem:
        """A sample, or why it is left out. Open files and indices are each worker's own."""
        if not hasattr(self._own, "splits"):
            self._own.splits = pickle.loads(pickle.dumps(self.splits))  # a private copy of what is in memory
        shards: ShardSet = self._own.splits[split]
        try:
            return shards.read(address, with_extras=True)
        except DamagedSampleError as error:
            if self.config.damaged_samples == "error":
                raise
            return BadItem(f"{split} sample {address.item} of shard {address.shard}", str(error))

    def _with_mirror_images(self, split: str, samples: list[Sample]) -> list[Sample]:
        """The samples, each followed by its mirror image where those are wanted.

        Data that allow flips allow them with all else unchanged, as augmentation takes it too.
        """
        if self._num_mirrors[split] == 1:
            return samples
        vectors = self.splits[split].schema.vector_channels
        along_w = None if vectors is None else vectors[0]
        pairs = (
            (sample, replace(sample, key=sample.key + MIRROR_SUFFIX, frames=mirror(sample.frames.copy(), 3, along_w)))
            for sample in samples
        )
        return [image for pair in pairs for image in pair]

    def _stored(
        self, task: ShardTask, addresses: list[SampleAddress], images: list[Sample], posterior: LatentGaussian
    ) -> Encoded:
        """Samples of latents in float16; a value that it cannot hold makes a bad item."""
        mean, logvar = posterior
        if self.config.kind == "sample":
            mean = self._draw(task, addresses, posterior)
        with np.errstate(over="ignore"):  # what overflows is found below
            means, logvars = (tensor.cpu().numpy().astype(np.float16) for tensor in (mean, logvar))
        encoded: Encoded = []
        for row, image in enumerate(images):
            if not np.isfinite(means[row]).all():
                encoded.append(BadItem(image.key, "its latents are NaN, infinite, or beyond float16"))
                continue
            actions = None
            if image.actions is not None:
                actions = self.autoencoder.description.latent_actions(torch.from_numpy(image.actions.copy())).numpy()
            stored = logvars[row] if self.config.kind == "posterior" else None
            encoded.append(Sample(image.key, means[row], actions, image.meta, image.states, stored))
        return encoded

    def _draw(self, task: ShardTask, addresses: list[SampleAddress], posterior: LatentGaussian) -> Tensor:
        """One draw of the posterior, from counters of the samples' numbers: the same wherever it is made."""
        first = self.splits[task.split].first_sample(addresses[0].shard)
        count = self._num_mirrors[task.split]
        numbers = [count * (first + address.item) + image for address in addresses for image in range(count)]
        counter = NoiseCounter(self.config.seed, torch.tensor(numbers), 0, Stream.LATENT_POSTERIOR)
        mean, logvar = (tensor.cpu() for tensor in posterior)
        return mean + (0.5 * logvar).exp() * normal(counter, mean.shape)


def check_shards(shards: ShardSet, autoencoder: Autoencoder, config: EncodeSourceConfig) -> None:
    """One-line ``ValueError`` where the shards don't fit the autoencoder or the options."""
    schema, description = shards.schema, autoencoder.description
    if shards.manifest.latents is not None:
        raise ValueError(f"{shards.folder} holds latents already; give the shards of the frames themselves")
    try:
        description.latent_shape(schema.shape)
        description.latent_frames(schema.num_frames)
    except ValueError as error:
        raise ValueError(f"{shards.folder}: {error}") from None
    if (schema.dtype == "uint8") != (description.frames.dtype == "uint8"):
        raise ValueError(
            f"{shards.folder} stores {schema.dtype}, the autoencoder was made for {description.frames.dtype}; convert "
            "the data as they were for its training"
        )
    if config.mirror and "flip" not in schema.allowed_augmentations:
        raise ValueError(f"{shards.folder} does not allow flips, so there are no mirror images; leave --mirror out")
