"""What the tests of the diffusion share: every process by name, its forward process as matrices, random numbers."""

import torch
from torch import Tensor

from dydiff_dist.diffusion import DiffusionProcess, build_process
from dydiff_dist.diffusion.dynamics import mixing_matrix
from dydiff_dist.diffusion.samplers import Level, Step, ddim_weights

ROWS: dict[str, dict] = {
    "dydiff": {},
    "dydiff_independent": {"process": "dydiff_independent"},
    "standard": {"process": "standard"},
    "correlated_noise": {"process": "correlated_noise"},
    "correlated_noise_constant": {"process": "correlated_noise", "gamma_schedule": "constant"},
    **{f"flow_matching_{mixes}": {"process": "flow_matching", "mixes": mixes} for mixes in ("none", "both", "frames")},
    "flow_matching_noise": {"process": "flow_matching", "mixes": "noise"},
    **{f"edm_{mixes}": {"process": "edm", "mixes": mixes} for mixes in ("none", "both", "frames", "noise")},
}
"""Options of `build_process` for every shipped process, mixed in every way."""


def reads(row: str, option: str) -> bool:
    """Whether a process follows from an option of the path of signal and noise; one that doesn't is refused."""
    of_edm, straight = row.startswith("edm"), row.startswith("flow_matching")
    return of_edm if option.startswith("sigma_m") else not (of_edm or straight)


PREDICTIONS = ("eps", "v", "x0", "velocity", "edm")


def predictions_of(row: str) -> tuple[str, ...]:
    """The predictions that a process allows: eps needs some signal at every timestep, which flow matching hasn't."""
    return tuple(p for p in PREDICTIONS if p != "eps" or not row.startswith("flow_matching"))


ROWS_AND_PREDICTIONS = [(row, prediction) for row in ROWS for prediction in predictions_of(row)]


def draw(shape: tuple, seed: int = 0, dtype: torch.dtype = torch.float64, num: int = 2) -> Tensor:
    """(num, *shape) standard normals."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, *shape, dtype=torch.float64, generator=generator).to(dtype)


def operators(process: DiffusionProcess, timestep: int, num_frames: int) -> tuple[Tensor, Tensor]:
    """A and B at a timestep as (S, S) matrices, those at -1 the identity; B takes white noise to that in z, so that it
    holds a noise operator, too."""
    if timestep < 0:
        identity = torch.eye(num_frames, dtype=torch.float64)
        return identity, identity
    table = process.table
    levels = torch.stack((table.frame_gamma[timestep], table.noise_gamma[timestep]))
    frames, noise = mixing_matrix(levels, num_frames)
    return frames, noise if table.noise_operator is None else noise @ table.noise_operator


def level(process: DiffusionProcess, timestep: int) -> Level:
    """A timestep as samplers know it."""
    if timestep < 0:
        return Level(-1, 1.0, 0.0)
    return Level(timestep, process.table.signal[timestep].item(), process.table.noise[timestep].item())


def ddim_step(process: DiffusionProcess, timestep: int, after: int, eta: float = 0.0) -> Step:
    """A DDIM step."""
    now_level, after_level = level(process, timestep), level(process, after)
    return Step(now_level, after_level, ddim_weights(now_level, after_level, eta))


def make_step(process: DiffusionProcess, z: Tensor, output: Tensor, step: Step, **options):
    """A step of the whole batch: (z', x̂)."""
    now, after = (
        process.table.at(torch.full(z.shape[:1], timestep)) for timestep in (step.now.timestep, step.after.timestep)
    )
    coefficients = process.coefficients(now, after, [step.weights] * len(z))
    return process.step(z, output, coefficients, step.weights, **options)


def noised(process: DiffusionProcess, x: Tensor, timestep: int, noise: Tensor) -> Tensor:
    """z of the whole batch at a timestep; x at -1."""
    return x if timestep < 0 else process.add_noise(x, torch.full(x.shape[:1], timestep), noise)[0]


def output_for(process: DiffusionProcess, z: Tensor, x: Tensor, timestep: int) -> Tensor:
    """The network output that stands for "the clean frames are ``x``", from matrices; (B, S, *rest) float64."""
    table = process.table
    a, s, p, q = (column[timestep] for column in (table.signal, table.noise, table.target_noise, table.target_signal))
    frames, noise = operators(process, timestep, z.shape[1])
    mean = along_frames(frames, x)
    mixed_noise = (z - a * mean) / s
    if process.table.mixes_target:
        return p * mixed_noise + q * mean
    return p * along_frames(torch.linalg.inv(noise), mixed_noise) + q * x


def along_frames(matrix: Tensor, x: Tensor) -> Tensor:
    """A (S, S) matrix on the frames of (B, S, *rest)."""
    return torch.einsum("sr,br...->bs...", matrix, x)


def error_gain(process: DiffusionProcess, *timesteps: int) -> float:
    """A bound, within a factor of 10, on what float64's rounding grows by on the way to x̂ and ε̂ and on."""
    table, gain = process.table, 1.0
    for t in timesteps:
        if t < 0:
            continue
        a, s, p, q = (c[t].item() for c in (table.signal, table.noise, table.target_noise, table.target_signal))
        unmix = 4 / (table.frame_gamma[t] * table.noise_gamma[t]).sqrt().item()
        size = max(1.0, a, s)
        to_clean = (abs(p) * size + s * (abs(p) + abs(q))) / abs(a * p - s * q)
        gain = max(gain, unmix * size * max(1.0, to_clean))
    return gain


def process_of(row: str, prediction: str | None = None, **options) -> DiffusionProcess:
    """The process of a row of ``ROWS``; options of the path of signal and noise where its own reads them."""
    path = ("beta_schedule", "zero_terminal_snr", "snr_factor", "sigma_min", "sigma_max")
    options = {name: value for name, value in options.items() if name not in path or reads(row, name)}
    if not row.startswith("edm") and prediction in ("eps", "v", "x0", "velocity"):
        options.pop("sigma_data", None)
    return build_process(**{**ROWS[row], "prediction": prediction, **options})
