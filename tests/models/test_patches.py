"""Patches side by side and overlapping: against a loop over pixels, and what the frames may show of them."""

import math

import pytest
import torch

from dydiff_dist.models.patches import Patches

LAYOUTS = [(16, 24, 8, 0), (16, 24, 8, 2), (16, 16, 8, 4), (8, 8, 8, 3), (12, 8, 4, 1), (4, 8, 1, 0)]
"""Height, width, patch, overlap; among them frames of a single patch, which is its own neighbour if periodic."""


def frames_of(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def weights_by_definition(offset: int, patch: int, overlap: int) -> float:
    """Of a pixel so far from its window's nearer end."""
    return math.sin(math.pi / 2 * min(1.0, (offset + 0.5) / (2 * overlap))) ** 2 if overlap else 1.0


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("height", "width", "patch", "overlap"), LAYOUTS)
def test_windows_are_cut_and_blended_as_a_loop_does(height, width, patch, overlap, periodic):
    patches, x = Patches(patch, overlap, periodic), frames_of(height, width)
    windows = patches.split(x)
    edge, rows, columns = patches.window, height // patch, width // patch
    assert windows.shape == (2, 3, rows * columns, 4 * edge**2)
    windows = windows.unflatten(-1, (4, edge, edge)).unflatten(2, (rows, columns))
    other = torch.randn(windows.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sums, totals = torch.zeros_like(x), torch.zeros(height, width, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            for i in range(edge):
                for j in range(edge):
                    y, z = row * patch - overlap + i, column * patch - overlap + j
                    if periodic:
                        y, z = y % height, z % width
                    elif not (0 <= y < height and 0 <= z < width):
                        assert not windows[:, :, row, column, :, i, j].any()
                        continue
                    assert torch.equal(windows[:, :, row, column, :, i, j], x[..., y, z])
                    weight = weights_by_definition(min(i, edge - 1 - i), patch, overlap)
                    weight *= weights_by_definition(min(j, edge - 1 - j), patch, overlap)
                    sums[..., y, z] += weight * other[:, :, row, column, :, i, j]
                    totals[y, z] += weight
    joined = patches.join(other.flatten(2, 3).flatten(-3), height, width)
    # at a border that is not periodic the weights of those who are there are brought to a sum of 1
    torch.testing.assert_close(joined, sums / totals, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(patches.join(patches.split(x), height, width), x, rtol=0, atol=1e-6)
    if periodic:
        torch.testing.assert_close(totals, torch.ones_like(totals), rtol=0, atol=1e-12)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("height", "width", "patch", "overlap"), LAYOUTS)
def test_a_number_a_token_is_spread_as_its_window_would_be(height, width, patch, overlap, periodic):
    patches, num_tokens = Patches(patch, overlap, periodic), height * width // patch**2
    factors = torch.randn(2, 3, 4, num_tokens, generator=torch.Generator().manual_seed(0))
    windows = factors.mT[..., None].expand(-1, -1, -1, -1, patches.window**2).flatten(-2)
    field = patches.spread(factors, height, width)
    torch.testing.assert_close(field, patches.join(windows, height, width), rtol=0, atol=1e-6)


@pytest.mark.parametrize("periodic", [False, True])
def test_no_pixel_is_further_from_its_neighbour_than_the_ramp_allows(periodic):
    """Tokens that write 0 and 1 in turn: side by side there is a step of 1, over an overlap of 4 pixels one of pi / 16
    at most, around the border too where the frames are periodic."""
    values = torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1]).reshape(1, 1, 8, 1)

    def steps(patches: Patches) -> torch.Tensor:
        field = patches.join(values.expand(-1, -1, -1, patches.window**2), 16, 32)[0, 0, 0]
        beyond = torch.cat((field, field[:, :1]), dim=1) if patches.periodic else field
        return torch.cat((beyond.diff(dim=1).abs().flatten(), field.diff(dim=0).abs().flatten()))

    assert steps(Patches(8)).max() == 1
    assert steps(Patches(8, 4, periodic)).max() < math.pi / 16
    assert steps(Patches(8, 2, periodic)).max() < math.pi / 8


def test_shifting_periodic_frames_by_a_patch_shifts_tokens():
    patches, x = Patches(8, 3, periodic=True), frames_of(16, 24)
    shifted = patches.split(x.roll((8, -8), (-2, -1))).unflatten(2, (2, 3))
    assert torch.equal(shifted, patches.split(x).unflatten(2, (2, 3)).roll((1, -1), (2, 3)))
