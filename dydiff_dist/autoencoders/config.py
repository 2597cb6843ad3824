"""Configuration of autoencoders: which one a run uses, and the architecture of one to be trained."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from dydiff_dist.strict_config import StrictConfig


class AutoencoderConfig(StrictConfig):
    """The autoencoder whose latents a run is trained on."""

    path: Annotated[str, Field(min_length=1)]
    """Folder with autoencoder.json and weights: a run of tools/train_vae.py, or ``autoencoder/`` beside latent
    shards."""
    max_frames: PositiveInt = 64
    """Frames encoded or decoded at once; bounds memory."""


class AutoencoderModelConfig(StrictConfig):
    """A frame-wise convolutional autoencoder, diffusers' AutoencoderKL. Its latents are smaller by 2^(levels - 1)."""

    latent_channels: int = Field(gt=0, le=2**16)
    """Channels of the latents."""
    channels: tuple[Annotated[int, Field(gt=0, le=2**16)], ...] = Field(default=(128, 256, 512), max_length=16)
    """Width of each level, finest first; height and width halve from one level to the next."""
    layers_per_block: int = Field(default=2, gt=0, le=100)
    """Residual blocks per level of the encoder; the decoder has one more."""
    norm_groups: PositiveInt = 32
    """Groups of the group normalisation; must divide every width."""
    mid_attention: bool = True
    """Whether the coarsest level has an attention layer."""
    periodic: bool = False
    """Whether convolutions wrap around the edges. Then a shift of a periodic field by whole latent pixels shifts its
    latents, and latent shards may be augmented by such shifts. Such weights need dydiff_dist to be read right."""

    @model_validator(mode="after")
    def _check_groups(self) -> "AutoencoderModelConfig":
        if not self.channels:
            raise ValueError("channels must name the width of at least one level, e.g. [64, 128]")
        odd = [width for width in self.channels if width % self.norm_groups]
        if odd:
            raise ValueError(f"channels {list(self.channels)} must be multiples of norm_groups {self.norm_groups}")
        return self

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent pixel along each axis."""
        return 2 ** (len(self.channels) - 1)


class PerceptualConfig(StrictConfig):
    """LPIPS as a loss, on the features of VGG-16 or AlexNet; their weights are yours to bring, none are shipped."""

    weights: Annotated[str, Field(min_length=1)]
    """torchvision's file of the backbone, or its convolutions (``features.N.weight``, ``features.N.bias``) as
    safetensors."""
    weight: NonNegativeFloat = 1.0
    """Factor of the loss."""


class DiscriminatorConfig(StrictConfig):
    """A patch discriminator (Isola et al. 2017) with hinge losses, trained against the autoencoder."""

    start_step: PositiveInt
    """Step from which it is trained; before it the autoencoder learns from the reconstruction alone."""
    weight: NonNegativeFloat = 0.1
    """Factor of its share in the autoencoder's loss."""
    width: int = Field(default=64, gt=0, le=2**16)
    """Channels of its first layer."""
    depth: int = Field(default=3, gt=0, le=16)
    """Layers that halve the frame."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Its learning rate; None takes training.learning_rate."""


class AutoencoderLossConfig(StrictConfig):
    """What an autoencoder is trained for. All terms are means per value of a frame in network units."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Mean absolute or mean squared error."""
    kl_weight: NonNegativeFloat = 1e-6
    """Factor of the divergence of the posterior from a standard normal, summed over a frame's latents and divided by
    the number of its pixel values."""
    perceptual: PerceptualConfig | None = None
    """Left out without weights."""
    discriminator: DiscriminatorConfig | None = None
    """Left out if None."""
