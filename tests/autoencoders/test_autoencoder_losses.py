"""Losses of autoencoders against torch's own distributions and formulas written out."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from dydiff_dist.autoencoders import losses


def test_the_divergence_is_torchs():
    mean, logvar = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3)) / 50
    torch.testing.assert_close(losses.divergence(mean, logvar, 50), expected)


@pytest.mark.parametrize("kind, power", [("l1", 1), ("l2", 2)])
def test_reconstruction_errors_are_means_per_frame(kind, power):
    decoded, pixels = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    expected = torch.stack([((d - p).abs() ** power).mean() for d, p in zip(decoded, pixels, strict=True)])
    torch.testing.assert_close(losses.reconstruction_error(decoded, pixels, kind), expected)


def test_the_discriminator_judges_each_frame_on_its_own():
    torch.manual_seed(0)
    discriminator = losses.PatchDiscriminator(2, width=8, depth=3)
    frames = torch.randn(3, 2, 64, 64)
    together = discriminator(frames)
    assert together.shape == (3, 1, 6, 6)
    torch.testing.assert_close(together[1:2], discriminator(frames[1:2]), rtol=1e-4, atol=1e-5)


def test_hinge_losses_stop_at_their_margin():
    sure, unsure = torch.full((2, 1, 3, 3), 2.0), torch.zeros(2, 1, 3, 3)
    assert losses.discriminator_loss(sure, -sure).tolist() == [0, 0]
    assert losses.discriminator_loss(unsure, unsure).tolist() == [1, 1]
    assert losses.adversarial_loss(sure).tolist() == [-2, -2]


def test_images_for_a_perceptual_loss_span_minus_one_to_one():
    low, high = torch.tensor([[[-3.0]]]), torch.tensor([[[5.0]]])
    images = losses.as_images(torch.tensor([-3.0, 1.0, 5.0]).reshape(1, 1, 1, 3), low, high)
    assert images.shape == (1, 3, 1, 3)
    assert images[0, 2, 0].tolist() == [-1, 0, 1]
