"""Fifty training steps of a mini model: the kernels give the reference's loss at every step."""

import torch
from kernel_cases import random_tensor

from dydiff_kernels import Levels, NoiseCounter, add_noise, denoising_loss

SHAPE = (2, 4, 3, 4, 4)
STEPS = 50


def training_curve(backend: str) -> torch.Tensor:
    """Losses (STEPS,) of a two-layer network that predicts eps, history frame masked, from its initial weights on."""
    torch.manual_seed(0)
    channels = SHAPE[1] * SHAPE[2]
    model = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 16, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(16, channels, 3, padding=1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    latents, frame_weights = random_tensor(SHAPE), torch.tensor([0.0, 1.0, 1.0, 1.0])
    losses = []
    for step in range(STEPS):
        noise = NoiseCounter(seed=11, sample_index=torch.arange(2) + 2 * step, step=step)
        alpha_bar, gamma_bar, one = torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.9]), torch.ones(2)
        levels = Levels(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), gamma_bar, gamma_bar, one, 0 * one)
        z, target, _ = add_noise(latents, levels, noise, backend=backend)
        output = model(z.flatten(1, 2)).view(SHAPE)
        loss = denoising_loss(output, target, frame_weights=frame_weights, backend=backend).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def test_every_step_has_the_loss_of_the_reference(backend):
    expected, actual = training_curve("reference"), training_curve(backend)
    assert expected[-10:].mean() < 0.9 * expected[:5].mean()  # it does learn
    # Rounding of 1e-7 a step, amplified by 50 steps of AdamW.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0)
