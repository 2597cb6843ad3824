"""What autoencoders are trained for: reconstruction, divergence of the posterior, and a patch discriminator.

Letters: n frames, C channels, H W height and width, c h w the latents'. Losses are per frame, (n,) float32.
"""

from torch import Tensor, nn
from torch.nn import functional

from dydiff_dist.autoencoders.networks import DiffusersNetwork


class TrainableAutoencoder(nn.Module):
    """An autoencoder's training pass, frames -> latents drawn from the posterior -> frames, in one forward."""

    def __init__(self, network: DiffusersNetwork):
        super().__init__()
        self.network = network

    def forward(self, pixels_nCHW: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(decoded frames, posterior's mean, its log-variance) for white ``noise`` (n, c, h, w)."""
        posterior = self.network.encode(pixels_nCHW).latent_dist
        drawn = posterior.mean + posterior.std * noise
        return self.network.decode(drawn).sample, posterior.mean, posterior.logvar


def reconstruction_error(decoded: Tensor, pixels: Tensor, kind: str) -> Tensor:
    """Mean absolute ("l1") or mean squared ("l2") error per frame."""
    error = decoded.float() - pixels.float()
    return (error.abs() if kind == "l1" else error.square()).flatten(1).mean(dim=1)


def divergence(mean: Tensor, logvar: Tensor, num_values: int) -> Tensor:
    """Kullback-Leibler divergence of N(mean, exp logvar) from N(0, 1) per frame, over ``num_values`` pixel values.

    Kingma & Welling 2014, appendix B: ½ Σ (μ² + σ² - 1 - log σ²). Divided by the number of pixel values, its factor has
    the meaning that it has where reconstruction and divergence are both sums, as in latent diffusion's autoencoders.
    """
    mean, logvar = mean.float(), logvar.float()
    terms = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
    return terms.flatten(1).sum(dim=1) / num_values


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of a frame as real or decoded (Isola et al. 2017, section 3.2.2).

    Group normalisation stands where the original has batch normalisation, so that a frame's verdict does not depend on
    the others in the batch, nor on the number of ranks.
    """

    def __init__(self, num_channels: int, width: int, depth: int):
        """``depth`` layers of stride 2, the first of ``width`` channels, doubled up to eightfold."""
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(depth + 1)]
        layers: list[nn.Module] = [nn.Conv2d(num_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in range(1, depth + 1):
            stride = 2 if level < depth else 1
            layers += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1),
                nn.GroupNorm(1, widths[level]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, pixels_nCHW: Tensor) -> Tensor:
        """Verdicts (n, 1, h', w'), positive for real."""
        return self.layers(pixels_nCHW)


def adversarial_loss(verdict_of_decoded: Tensor) -> Tensor:
    """The autoencoder's share: minus the mean verdict, per frame."""
    return -verdict_of_decoded.float().flatten(1).mean(dim=1)


def discriminator_loss(verdict_of_real: Tensor, verdict_of_decoded: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017) per frame."""
    real = functional.relu(1 - verdict_of_real.float()).flatten(1).mean(dim=1)
    decoded = functional.relu(1 + verdict_of_decoded.float()).flatten(1).mean(dim=1)
    return 0.5 * (real + decoded)


def as_images(pixels_nCHW: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Frames of 1 or 3 channels as images (n, 3, H, W) in -1..1, for a perceptual loss; ``low`` and ``high`` are the
    range of the values, (C, 1, 1)."""
    scaled = 2 * (pixels_nCHW.float() - low) / (high - low) - 1
    return scaled.clamp(-1, 1).expand(-1, 3, -1, -1)
