"""Training of an autoencoder: frames in, the same frames out through few latents; latents with units as result.

Letters: B samples, S frames of each, n = B·S frames, C channels, H W height and width, c h w the latents'.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dydiff_dist.autoencoders import Autoencoder, build_network
from dydiff_dist.autoencoders.adopt import bare_autoencoder, save_measured
from dydiff_dist.autoencoders.losses import (
    PatchDiscriminator,
    TrainableAutoencoder,
    adversarial_loss,
    as_images,
    discriminator_loss,
    divergence,
    reconstruction_error,
)
from dydiff_dist.autoencoders.verify import Reconstructions, data_range
from dydiff_dist.data.shard_set import ShardSet
from dydiff_dist.engine.protocol import Engine, Engines
from dydiff_dist.evaluation.figures import save_figure
from dydiff_dist.evaluation.reconstruction import format_reconstruction
from dydiff_dist.ranks.collectives import gather_objects
from dydiff_dist.tasks.config import AutoencoderRunConfig
from dydiff_dist.training.config import TrainingConfig
from dydiff_dist.training.progress import RunLog
from dydiff_dist.training.run_plan import RunPlan
from dydiff_dist.training.task import MicroLoss, Task
from dydiff_kernels import NoiseCounter, Stream, normal


class AutoencoderTask(Task[AutoencoderRunConfig]):
    """Trains diffusers' AutoencoderKL: reconstruction, divergence, and by choice perceptual and adversarial losses."""

    config_type = AutoencoderRunConfig

    def __init__(self, plan: RunPlan[AutoencoderRunConfig]):
        super().__init__(plan)
        _check_frames(plan)
        _check_validation_samples(plan)
        self._perceptual = self._load_perceptual()

    def facts(self) -> dict[str, str]:
        """As `Task.facts`: shape of frames and latents, and the weighted losses."""
        model, loss = self.config.model, self.config.loss
        shape = self.plan.train_shards.schema.shape
        ratio = model.spatial_ratio
        latents = (model.latent_channels, shape[1] // ratio, shape[2] // ratio)
        parts = [f"{loss.reconstruction} + {loss.kl_weight:g} KL"]
        if loss.perceptual is not None:
            parts.append(f"{loss.perceptual.weight:g} perceptual")
        if loss.discriminator is not None:
            parts.append(f"{loss.discriminator.weight:g} adversarial from step {loss.discriminator.start_step}")
        return {"latents": f"{shape} -> {latents}", "loss": " + ".join(parts)}

    def build_networks(self) -> dict[str, nn.Module]:
        """The autoencoder, and the discriminator where one is configured."""
        networks: dict[str, nn.Module] = {"model": self._build_autoencoder()}
        discriminator = self.config.loss.discriminator
        if discriminator is not None:
            networks["discriminator"] = PatchDiscriminator(self._num_channels, discriminator.width, discriminator.depth)
        return networks

    def training_of(self, network: str) -> TrainingConfig:
        """The discriminator may have a learning rate of its own."""
        training, discriminator = self.config.training, self.config.loss.discriminator
        if network == "model" or discriminator is None or discriminator.learning_rate is None:
            return training
        return training.model_copy(update={"learning_rate": discriminator.learning_rate})

    def losses(self, engines: Engines, batch: dict[str, Any], step: int) -> Iterator[MicroLoss]:
        """As `Task.losses`: the autoencoder's, then the discriminator's once that has started."""
        pixels = batch["frames"].to(self.plan.world.device, non_blocking=True).flatten(0, 1)
        dtype, num_samples = self.plan.network_dtype, len(batch["frames"])
        noise = self._posterior_noise(batch, step).to(pixels.device, dtype)
        decoded, mean, logvar = engines["model"](pixels.to(dtype), noise)
        parts = self._reconstruction_parts(pixels, decoded, mean, logvar)
        discriminator = self.config.loss.discriminator
        adversarial = discriminator is not None and step >= discriminator.start_step
        if adversarial:
            parts["adversarial"] = self._verdict_loss(engines["discriminator"], decoded)
        total = self._weighted(parts)
        names = {"loss/train": total, **{f"loss/{name}": value for name, value in parts.items()}}
        yield MicroLoss(loss=total.mean(), per_sample={name: _by_sample(v, num_samples) for name, v in names.items()})
        if adversarial:
            # one pass for both: an engine counts on one forward pass for each backward pass
            verdicts = engines["discriminator"](torch.cat([pixels.to(dtype), decoded.detach()]))
            judged = discriminator_loss(*verdicts.chunk(2))
            yield MicroLoss(
                loss=judged.mean(),
                per_sample={"loss/discriminator": _by_sample(judged, num_samples)},
                network="discriminator",
            )

    def validate(self, step: int, weights: dict[str, Tensor], log: RunLog) -> None:
        """As `Task.validate`: decodes the first validation samples, shared over ranks; logs scores and a picture."""
        world, valid = self.plan.world, self.plan.valid_shards
        assert valid is not None, "the trainer validates where there are validation shards"
        numbers = range(world.rank, self.config.training.num_validation_samples, world.world_size)
        judged = self._reconstruct(self._autoencoder(weights), valid, numbers)
        everyone = gather_objects(judged.scores)
        summary = everyone[0].merge(everyone[1:]).summary()
        if log.enabled:
            log.scalars(step, {f"validation/{name}": value for name, value in summary.items()})
            log.figure(step, "reconstruction", judged.figure())
            log.say(f"step {step}: validation {format_reconstruction(summary)}")

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """An autoencoder for ``dydiff_dist.autoencoders.load_autoencoder``, with units measured on the training data,
        scores on the validation data, and a picture."""
        training, shards = self.config.training, self.plan.train_shards
        autoencoder, valid = self._autoencoder(weights), self.plan.valid_shards or shards
        number, split = min(training.num_validation_samples, len(valid)), valid.manifest.split
        judged = self._reconstruct(autoencoder, valid, range(number))
        scores = judged.scores.summary()
        facts = {
            "trained_on": shards.manifest.source,
            "steps": training.steps,
            "loss": self.config.loss.model_dump(mode="json"),
            "scores": {"split": split, "samples": number, **scores},
        }
        description = save_measured(folder, autoencoder, shards, training.num_measured_samples, facts)
        save_figure(judged.figure(), folder / "reconstruction.png")
        print(f"autoencoder {description.sha256[:12]}…: {format_reconstruction(scores)} on {number} of {split}")

    @property
    def _num_channels(self) -> int:
        return self.plan.train_shards.schema.shape[0]

    def _build_autoencoder(self) -> TrainableAutoencoder:
        num_channels, height, _ = self.plan.train_shards.schema.shape
        return TrainableAutoencoder(build_network(self.config.model, num_channels=num_channels, frame_size=height))

    def _posterior_noise(self, batch: dict[str, Any], step: int) -> Tensor:
        """White noise (n, c, h, w) from the samples' counters."""
        B, S, _, H, W = batch["frames"].shape
        model = self.config.model
        shape = (B, S, model.latent_channels, H // model.spatial_ratio, W // model.spatial_ratio)
        counter = NoiseCounter(self.config.seed, batch["sample_index"], step, Stream.LATENT_POSTERIOR)
        return normal(counter, shape).flatten(0, 1)

    def _reconstruction_parts(self, pixels: Tensor, decoded: Tensor, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        """Unweighted losses by name, (n,) each."""
        parts = {
            "reconstruction": reconstruction_error(decoded, pixels, self.config.loss.reconstruction),
            "kl": divergence(mean, logvar, pixels[0].numel()),
        }
        if self._perceptual is not None:
            low, high = self._pixel_range
            parts["perceptual"] = self._perceptual(as_images(decoded, low, high), as_images(pixels, low, high))
        return parts

    def _weighted(self, parts: dict[str, Tensor]) -> Tensor:
        """The autoencoder's loss per frame."""
        loss = self.config.loss
        factors = {"reconstruction": 1.0, "kl": loss.kl_weight}
        if loss.perceptual is not None:
            factors["perceptual"] = loss.perceptual.weight
        if loss.discriminator is not None:
            factors["adversarial"] = loss.discriminator.weight
        return torch.stack([factors[name] * value for name, value in parts.items()]).sum(dim=0)

    def _verdict_loss(self, discriminator: Engine | nn.Module, decoded: Tensor) -> Tensor:
        """What the discriminator says of decoded frames, with gradients for the frames but not for its weights."""
        # past the engine, which would take the autoencoder's backward pass for its own
        network = discriminator.module if isinstance(discriminator, Engine) else discriminator
        network.requires_grad_(False)
        loss = adversarial_loss(network(decoded))
        network.requires_grad_(True)
        return loss

    def _load_perceptual(self) -> nn.Module | None:
        """The perceptual network, frozen, on this rank's device."""
        perceptual = self.config.loss.perceptual
        if perceptual is None:
            return None
        if self._num_channels not in (1, 3):
            raise ValueError(
                f"loss.perceptual compares images of 1 or 3 channels, the frames have {self._num_channels}; remove it"
            )
        from dydiff_dist.evaluation.lpips import load_lpips

        network, _ = load_lpips(perceptual.weights, self.plan.world.device)
        _, height, width = self.config.data.frame_shape(self.plan.train_shards.schema.shape)
        if min(height, width) < network.min_pixels:
            raise ValueError(
                f"loss.perceptual with {network.net} needs frames of at least {network.min_pixels} pixels, they are "
                f"{height}x{width}; remove it or raise data.crop_size"
            )
        return network.requires_grad_(False)

    @cached_property
    def _pixel_range(self) -> tuple[Tensor, Tensor]:
        """Least and largest value of the training frames in network units, (C, 1, 1) each."""
        manifest = self.plan.train_shards.manifest
        limits = [
            (np.asarray(v) - manifest.shift) / manifest.scale
            for v in (manifest.statistics.min, manifest.statistics.max)
        ]
        tensors = [torch.tensor(v, dtype=torch.float32, device=self.plan.world.device)[:, None, None] for v in limits]
        return torch.minimum(*tensors), torch.maximum(*tensors)

    def _autoencoder(self, weights: dict[str, Tensor]) -> Autoencoder:
        """The averaged weights, ready to encode and decode in the network's own latent units."""
        trainable = self._build_autoencoder()
        trainable.load_state_dict(weights)
        model, manifest, device = self.config.model, self.plan.train_shards.manifest, self.plan.world.device
        return bare_autoencoder(
            trainable.network.eval().requires_grad_(False).to(device),
            self.plan.train_shards,
            (manifest.shift, manifest.scale),
            (model.latent_channels, model.spatial_ratio, 1),
            device,
            periodic=model.periodic,
        )

    def _reconstruct(self, autoencoder: Autoencoder, shards: ShardSet, numbers: range) -> Reconstructions:
        """Whole samples decoded from the posterior's mean."""
        judged = Reconstructions(shards, data_range(self.plan.train_shards.manifest))
        for number in numbers:
            sample = shards.read(shards.address(number))
            frames = torch.from_numpy(sample.frames[None].astype(np.float32))
            judged.add(sample, autoencoder.to_frames(autoencoder.history_latents(frames))[0].numpy())
        return judged


def _by_sample(values_n: Tensor, num_samples: int) -> Tensor:
    """Means over each sample's frames, (B,), detached."""
    return values_n.detach().unflatten(0, (num_samples, -1)).mean(dim=1)


def _check_frames(plan: RunPlan[AutoencoderRunConfig]) -> None:
    """What is trained on are frames, of a size that the reduction divides."""
    if plan.train_shards.manifest.latents is not None:
        raise ValueError(f"{plan.train_shards.folder} holds latents; an autoencoder is trained on frames")
    ratio, whole = plan.config.model.spatial_ratio, plan.train_shards.schema.shape
    for _, height, width in (plan.config.data.frame_shape(whole), whole):
        if height % ratio or width % ratio:
            raise ValueError(
                f"frames of {height}x{width} are no multiple of {ratio}, which model.channels of "
                f"{len(plan.config.model.channels)} levels reduce by; change it or data.crop_size"
            )


def _check_validation_samples(plan: RunPlan[AutoencoderRunConfig]) -> None:
    count, valid = plan.config.training.num_validation_samples, plan.valid_shards
    if valid is not None and count > len(valid):
        raise ValueError(
            f"training.num_validation_samples is {count}, {valid.folder} has {len(valid)} samples; lower it"
        )
