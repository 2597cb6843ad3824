"""Gaussian frames, whose best denoiser is linear and known for every process: what solvers are judged by."""

import torch
from process_rows import operators, output_for
from torch import Tensor

from dydiff_dist.diffusion import DiffusionProcess, sample, start_noise
from dydiff_dist.diffusion.sampling import Denoise

S = 6


class GaussianFrames:
    """x ~ N(0, C) along frames, C = 1.5² · 0.8^lag.

    With z = a A x + s B ε of covariance Σ = a² A C Aᵀ + s² B Bᵀ the best denoiser is E[x|z] = a C Aᵀ Σ⁻¹ z.
    """

    def __init__(self) -> None:
        frame = torch.arange(S)
        self.covariance = 2.25 * 0.8 ** (frame[:, None] - frame[None, :]).abs().double()

    def best_estimate(self, process: DiffusionProcess, timestep: int) -> Tensor:
        """The matrix of E[x|z]."""
        a, s = process.table.signal[timestep], process.table.noise[timestep]
        A, B = operators(process, timestep, S)
        total = a**2 * A @ self.covariance @ A.T + s**2 * B @ B.T
        return a * self.covariance @ A.T @ torch.linalg.inv(total)

    def denoiser(self, process: DiffusionProcess) -> Denoise:
        """The network output that stands for E[x|z]."""
        kept: dict[int, Tensor] = {}

        def denoise(model_input: Tensor, timesteps: Tensor) -> Tensor:
            t = int(timesteps[0])
            if t not in kept:  # outputs are linear in z: one matrix for each timestep
                unit = torch.eye(S, dtype=torch.float64)[:, :, None]
                best = (self.best_estimate(process, t) @ unit[..., 0].T).T[:, :, None]
                kept[t] = output_for(process, unit, best, t)[..., 0].T
            scale = 1.0 if process.table.input_std is None else process.table.input_std[t]
            return torch.einsum("sr,brp->bsp", kept[t], scale * model_input)

        return denoise

    def flow(self, process: DiffusionProcess, z: Tensor, timestep: int, after: int) -> Tensor:
        """Where the exact deterministic flow takes z, for processes that are standard diffusion once whitened.

        y = B⁻¹z has signal M x with a constant M = B⁻¹A. In the eigenvectors of M C Mᵀ, of eigenvalues k, y has
        variance a² k + s², and the flow rescales it by the square root of what that grows by.
        """
        A, B = operators(process, timestep, S)
        B_after = operators(process, after, S)[1]
        whitened = torch.linalg.solve(B, A)
        variances, vectors = torch.linalg.eigh(whitened @ self.covariance @ whitened.T)
        a, s = process.table.signal, process.table.noise
        now, then = (a[t] ** 2 * variances + s[t] ** 2 for t in (timestep, after))
        flow = B_after @ vectors @ (then / now).sqrt().diag() @ vectors.T @ torch.linalg.inv(B)
        return torch.einsum("sr,brp->bsp", flow, z)


def start_of(process: DiffusionProcess, timestep: int) -> Tensor:
    """200 starts."""
    noise = torch.randn(2, S, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return start_noise(process, noise.shape, timestep, noise, dtype=torch.float64)


def arrival(process: DiffusionProcess, grid: list[int], sampler: str) -> Tensor:
    """z at the last timestep of the grid: the step from there to clean is first order in every solver."""
    denoise, seen = GaussianFrames().denoiser(process), {}

    def watching(model_input: Tensor, timesteps: Tensor) -> Tensor:
        t = int(timesteps[0])
        scale = 1.0 if process.table.input_std is None else process.table.input_std[t]
        seen[t] = scale * model_input  # Heun comes twice to a timestep: the second time with the corrected z
        return denoise(model_input, timesteps)

    sample(process, watching, start=start_of(process, grid[0]), timesteps=grid, sampler=sampler)
    return seen[grid[-1]]


def grid_of(process: DiffusionProcess, num_steps: int) -> list[int]:
    """Timesteps at equal steps of λ from 95 % to 1 % of N, both included: as good as continuous where N is large."""
    log_snr, num_timesteps = process.table.log_snr, process.num_timesteps
    lowest, highest = log_snr[num_timesteps * 95 // 100], log_snr[num_timesteps // 100]
    wanted = lowest + (highest - lowest) * torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    return torch.searchsorted(-log_snr, -wanted).tolist()


def root_mean_square(x: Tensor) -> float:
    """√ of the mean square."""
    return x.square().mean().sqrt().item()
