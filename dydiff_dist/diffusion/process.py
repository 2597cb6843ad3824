"""Dynamical Diffusion (arXiv 2503.00951): the forward process, its targets, and one reverse step.

With the Dynamics operator D = D_{γ̄_t} along frames, clean frames x and white noise ε:

    dependent noise (default)   z_t = D u_t ,  u_t = √ᾱ_t x + √(1-ᾱ_t) ε
    independent noise           z_t = √ᾱ_t D x + √(1-ᾱ_t) ε

    prediction   target of the network          (ε̃ = D ε with dependent noise, ε with independent; μ = D x)
    eps          ε̃
    v            √ᾱ ε̃ - √(1-ᾱ) μ
    x0           x

So with dependent noise everything is standard variance-preserving diffusion of u, and the code below is that: unmix,
do what standard diffusion does, mix. docs/method.md explains it from the start.

Letters: B batch, S frames, N timesteps; tensors are (B, S, *rest) with any rest. t = -1 is clean.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import dydiff_kernels as kernels
from dydiff_dist.diffusion import accuracy, losses, solvers, standard
from dydiff_dist.diffusion.dynamics import frame_mix, frame_unmix, mixed_signal_variance
from dydiff_dist.diffusion.levels import Levels, LevelTable, check_order, check_timesteps
from dydiff_dist.diffusion.names import (
    BetaSchedule,
    GammaSchedule,
    LossFrames,
    LossSpace,
    NetworkSpace,
    Prediction,
    check_name,
)
from dydiff_dist.diffusion.schedules import alpha_bar_schedule, gamma_bar_schedule
from dydiff_dist.diffusion.standard import over_frames, signal_and_noise, to_compute
from dydiff_kernels import NoiseCounter, NoisedLatents, ReverseStep

Noise = Tensor | NoiseCounter


class DynamicalDiffusion:
    """The diffusion process: schedules, targets, predictions and reverse steps, free of any network.

    Timesteps are int64, (B,) in 0..N-1, or (B, S) in -1..N-1 for frames with levels of their own (-1: clean; dependent
    noise only). On the CPU their range is checked. Storage may be float32, bfloat16 or float16, calculated in float32;
    float64 is calculated in float64.

    Args:
        num_timesteps: N.
        beta_schedule: "cosine", "linear" or "scaled_linear" noise schedule.
        gamma_schedule: "cosine", "linear_cumprod", "none" (standard diffusion), or N values of γ̄ in (0, 1].
        gamma_ratio: how far the cosine γ̄ falls: from 1 to 1 - ratio.
        prediction: what the network predicts: "eps", "v" or "x0".
        dependent_noise: mix the noise along frames as the data (the method), or not (the paper's ablation).
        beta_start: first β of the linear schedules, None for the usual one.
        beta_end: last β of the linear schedules, None for the usual one.
        zero_terminal_snr: make the last timestep pure noise.
        snr_factor: on the signal-to-noise ratio of every timestep.
        network_space: "unmixed" gives the network u and takes its output for the unmixed target: standard diffusion,
            with γ̄ left for ``loss_space``.
        normalize_input: divide the network's input by its standard deviation at the timestep.
        frame_autocovariance: E[xʳ xˢ] of the data in network units, by lag (S,) or as a matrix (S, S); needed by
            ``normalize_input``.
        loss_space: where the loss measures errors: in the target's own space, in the mixed or in the unmixed one.
        loss_frames: "all", or "future" frames only.
        min_snr: limit of min-SNR weighting; None for no weighting.
        backend: of the kernels: "auto", "triton", "cpp" or "reference".

    Attributes:
        alpha_bar: ᾱ_t, (N,) float64 on the CPU.
        gamma_bar: γ̄_t, (N,) float64 on the CPU.
        is_standard: whether z is standard diffusion's: nothing is mixed, the arithmetic is that of a plain DDPM.
        input_std: standard deviation of z by timestep, (N,) float64; None if inputs are not normalised.
        table: the schedules, to be looked up at timesteps.

    Raises:
        ValueError: a value out of range, or a combination without meaning.
    """

    def __init__(
        self,
        num_timesteps: int = 1000,
        beta_schedule: BetaSchedule = "cosine",
        gamma_schedule: GammaSchedule | Sequence[float] | np.ndarray | Tensor = "cosine",
        gamma_ratio: float = 0.5,
        prediction: Prediction = "eps",
        dependent_noise: bool = True,
        *,
        beta_start: float | None = None,
        beta_end: float | None = None,
        zero_terminal_snr: bool = False,
        snr_factor: float = 1.0,
        network_space: NetworkSpace = "mixed",
        normalize_input: bool = False,
        frame_autocovariance: Sequence[float] | np.ndarray | Tensor | None = None,
        loss_space: LossSpace = "target",
        loss_frames: LossFrames = "all",
        min_snr: float | None = None,
        backend: str = "auto",
    ):
        check_name("prediction", prediction, Prediction)
        check_name("network_space", network_space, NetworkSpace)
        check_name("loss_space", loss_space, LossSpace)
        check_name("loss_frames", loss_frames, LossFrames)
        check_name("backend", backend, kernels.Backend)
        if min_snr is not None and not min_snr > 0:
            raise ValueError(f"min_snr is {min_snr}; it must be positive (5 is usual), or None for no weighting")
        self.num_timesteps = num_timesteps
        self.alpha_bar = alpha_bar_schedule(
            num_timesteps,
            beta_schedule,
            beta_start=beta_start,
            beta_end=beta_end,
            zero_terminal_snr=zero_terminal_snr,
            snr_factor=snr_factor,
        )
        self.gamma_bar = gamma_bar_schedule(num_timesteps, gamma_schedule, gamma_ratio)
        self.prediction = prediction
        self.dependent_noise = dependent_noise
        self.network_space = network_space
        self.loss_space = loss_space
        self.loss_frames = loss_frames
        self.min_snr = min_snr
        self.backend = backend
        self.is_standard = network_space == "unmixed" or bool((self.gamma_bar == 1).all())
        accuracy.check_construction(self)
        schedules = {"alpha_bar": self.alpha_bar, "gamma_bar": self.gamma_bar}
        self.input_std = None
        if normalize_input:
            self.input_std = schedules["input_std"] = self._measure_input_std(frame_autocovariance)
        self.table = LevelTable(**schedules)
        # No step of the kernels starts from ᾱ = 0; "reference" asks for the torch code here.
        self._fusable = backend != "reference" and not self.is_standard and not zero_terminal_snr
        self._kernel_options = {"prediction": prediction, "dependent_noise": dependent_noise, "backend": backend}

    # -- forward ------------------------------------------------------------------------------------------------------

    def add_noise(
        self, x0: Tensor, timesteps: Tensor, noise: Noise, *, spent: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """z_t and the network's target, both as ``x0``: (B, S, *rest), its dtype and device.

        Args:
            x0: clean frames in network units, of about unit variance.
            timesteps: (B,) int64 in 0..N-1, or (B, S) in -1..N-1.
            noise: white noise ε like ``x0``, or a counter that names it.
            spent: results of an earlier call that nobody needs any more. Their memory is written again where it fits
                and a kernel runs: on a CPU new memory costs more than the work (docs/kernels.md).
        """
        levels = self.levels(timesteps, x0)
        if self._runs_fused(levels, x0, noise):
            fused = kernels.add_noise(x0, *levels, noise, out=self._noised_room(x0, spent), **self._kernel_options)
            return fused.z, fused.target
        clean, white = to_compute(x0), self._draw(noise, x0)
        if not self.dependent_noise:
            clean = self._mix(clean, levels)
        z, target = standard.noised(self.prediction, clean, white, *signal_and_noise(levels, clean))
        if self.dependent_noise:
            z, target = self._mix(z, levels), self._mix(target, levels)
        if self.prediction == "x0":
            target = x0
        return z.to(x0.dtype), target.to(x0.dtype)

    def add_noise_to_draw(
        self,
        posterior: kernels.LatentPosterior,
        timesteps: Tensor,
        noise: Noise,
        *,
        spent: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z_t, the target, and the clean frames, drawn from the posterior of pre-encoded latents in the same pass.

        Args:
            posterior: mean and log-variance in network units, and the noise of the draw.
            timesteps: as for ``add_noise``.
            noise: as for ``add_noise``.
            spent: results of an earlier call that nobody needs any more; their memory is written again.
        """
        mean = posterior.mean
        levels = self.levels(timesteps, mean)
        if self._runs_fused(levels, mean, posterior.logvar, posterior.noise, noise):
            out = NoisedLatents(*spent) if spent is not None and spent[0].shape == mean.shape else None
            fused = kernels.add_noise(posterior, *levels, noise, with_x0=True, out=out, **self._kernel_options)
            return fused.z, fused.target, fused.x0
        spread = (0.5 * to_compute(posterior.logvar)).exp() * self._draw(posterior.noise, mean)
        x0 = (posterior.scale * (to_compute(mean) + spread)).to(mean.dtype)
        return (*self.add_noise(x0, timesteps, noise), x0)

    def start(self, noise: Tensor, timestep: int) -> Tensor:
        """Pure noise as z has it at ``timestep``: D ε, or ε where noise is independent; ``noise`` is (B, S, *rest)."""
        if not self.dependent_noise:
            return noise
        levels = self.levels(torch.full((noise.shape[0],), timestep), noise)
        return self._mix(to_compute(noise), levels).to(noise.dtype)

    def model_input(self, z: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is shown for z: z itself, or z over its standard deviation at the timestep."""
        if self.input_std is None:
            return z
        check_timesteps(timesteps, z, self.num_timesteps, allow_clean=False)
        if timesteps.ndim == 2:
            raise ValueError("normalize_input has one deviation per timestep and sample; give timesteps of shape (B,)")
        std = self.table.at("input_std", timesteps.to(z.device))
        return (to_compute(z) / over_frames(std, z)).to(z.dtype)

    # -- reverse ------------------------------------------------------------------------------------------------------

    def predict(self, z: Tensor, timesteps: Tensor, model_output: Tensor) -> tuple[Tensor, Tensor]:
        """What the network's output says of the clean frames and of the noise in z.

        Returns:
            (x̂, ε̃), each as ``z``: clean frames, and the noise as z carries it (mixed, where noise is dependent).

        Raises:
            ValueError: the storage holds no digit of x̂ at such a timestep (see ``docs/method.md``, Numerics). On a GPU
                the check waits for ``timesteps``; ``samplers.sample`` makes it on the host instead.
        """
        levels = self.levels(timesteps, z)
        accuracy.check_predict(self, timesteps, z.dtype, model_output.dtype)
        x0_hat, noise_hat = self._split(z, levels, model_output)
        if self.dependent_noise:
            noise_hat = self._mix(noise_hat, levels)
        return x0_hat.to(z.dtype), noise_hat.to(z.dtype)

    def step(
        self,
        z: Tensor,
        timesteps: Tensor,
        prev_timesteps: Tensor,
        model_output: Tensor,
        eta: float = 0.0,
        noise: Noise | None = None,
        *,
        history: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One DDIM step from ``timesteps`` down to ``prev_timesteps`` (-1: clean); η = 1 is ancestral sampling.

        Args:
            z: (B, S, *rest) at ``timesteps``.
            timesteps: (B,) or (B, S) int64.
            prev_timesteps: of the same shape, nowhere above ``timesteps``.
            model_output: the network's output for z.
            eta: 0 is deterministic, 1 has the variance of the forward process' posterior.
            noise: fresh white noise for η > 0, like z or a counter.
            history: known clean frames (B, H, *rest) that replace the first H of x̂.

        Returns:
            (z at ``prev_timesteps``, x̂), each as ``z``.

        Raises:
            ValueError: as for ``predict``; η > 0 without noise; timesteps out of order.
        """
        levels, after = self.levels(timesteps, z), self.levels(prev_timesteps, z, allow_clean=True)
        check_order(timesteps, prev_timesteps)
        accuracy.check_step(self, timesteps, prev_timesteps, z.dtype, model_output.dtype)
        if eta < 0:
            raise ValueError(f"eta is {eta}; it must not be negative (0 is deterministic DDIM, 1 ancestral sampling)")
        if eta > 0 and noise is None:
            raise ValueError(f"eta is {eta} but noise is None; give noise like z, or a NoiseCounter, or take eta=0")
        coefficients = solvers.ddim(levels.alpha_bar, after.alpha_bar, eta)
        return self.advance(
            z, levels, after, model_output, coefficients, noise=noise if eta > 0 else None, history=history
        )

    def advance(
        self,
        z: Tensor,
        levels: Levels,
        after: Levels,
        model_output: Tensor,
        coefficients: solvers.StepCoefficients,
        *,
        x0_before: Tensor | None = None,
        noise: Noise | None = None,
        history: Tensor | None = None,
        wants_x0: bool = True,
        spent: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> tuple[Tensor, Tensor | None]:
        """One reverse step of any solver: (z at ``after``, x̂). Checks nothing; ``step`` and ``samplers.sample`` do.

        z' = D' (signal x̂ + noise ε̂ + correction (x̂ - x̂_before) + sigma n) with dependent noise, and with independent
        noise z' = signal D' x̂ + noise ε̃ + sigma n.

        ``wants_x0=False`` allows None for x̂, which a kernel then need not write. ``spent`` (z and x̂ of an earlier step,
        also this one's ``z`` and ``x0_before``) is memory that a kernel may write again.
        """
        if self._runs_fused(levels, z, model_output, x0_before, noise, history):
            combination = solvers.kernel_coefficients(coefficients, levels, after, self.dependent_noise)
            return kernels.reverse_step(
                z,
                model_output,
                combination,
                noise=noise,
                history=history,
                x0_prev=x0_before,
                return_x0=wants_x0,
                out=ReverseStep(spent[0], spent[1] if wants_x0 else None),
                **self._kernel_options,
            )
        x0_hat, noise_hat = self._split(z, levels, model_output, history)
        signal, keep, correction, sigma = (over_frames(c, z) for c in coefficients)
        mean = x0_hat if self.dependent_noise else self._mix(x0_hat, after)
        result = signal * mean + keep * noise_hat
        if x0_before is not None:
            result = result + correction * (x0_hat - x0_before)
        if noise is not None:
            result = result + sigma * self._draw(noise, z)
        if self.dependent_noise:
            result = self._mix(result, after)
        return result.to(z.dtype), x0_hat.to(z.dtype)

    # -- loss ---------------------------------------------------------------------------------------------------------

    def loss(
        self, model_output: Tensor, target: Tensor, timesteps: Tensor, *, num_history_frames: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error of the network's output, in the space, on the frames and with the weights of the options.

        Args:
            model_output: (B, S, *rest).
            target: from ``add_noise``.
            timesteps: as given to ``add_noise``.
            num_history_frames: leading frames that ``loss_frames="future"`` leaves out.

        Returns:
            (mean over the batch, () ; per sample, (B,)), float32 or float64.
        """
        levels = self.levels(timesteps, target)
        first_frame = num_history_frames if self.loss_frames == "future" else 0
        losses.check_first_frame(first_frame, target.shape[1])
        weights = None
        if self.min_snr is not None:
            weights = losses.min_snr_weight(levels.alpha_bar, self.prediction, self.min_snr)
        in_target_space = self.loss_space in ("target", "unmixed" if self.prediction == "x0" else self.network_space)
        if in_target_space and not levels.per_frame:
            mask = losses.frame_mask(first_frame, target.shape[1])
            per_sample = kernels.denoising_loss(
                model_output, target, sample_weights=weights, frame_weights=mask, backend=self.backend
            )
            return per_sample.mean(), per_sample
        error = to_compute(model_output) - to_compute(target)
        if not in_target_space:
            change = frame_mix if self.loss_space == "mixed" else frame_unmix
            error = change(error, levels.gamma_bar, backend=self.backend)
        per_sample = losses.weighted_mean_square(error, weights, first_frame)
        return per_sample.mean(), per_sample

    # -- parts --------------------------------------------------------------------------------------------------------

    def levels(self, timesteps: Tensor, z: Tensor, *, allow_clean: bool = False) -> Levels:
        """ᾱ and γ̄ at ``timesteps`` for the sequence ``z`` (B, S, *rest), on its device.

        Raises:
            ValueError: shape, dtype, or (on the CPU, where looking doesn't wait) a value out of range.
        """
        if not z.is_floating_point():
            raise ValueError(
                f"frames have dtype {z.dtype}; give floating numbers in network units, float32 for example"
            )
        check_timesteps(timesteps, z, self.num_timesteps, allow_clean)
        if timesteps.ndim == 2 and not (self.dependent_noise or self.is_standard):
            raise ValueError("timesteps of shape (B, S) need dependent_noise=True; with independent noise give (B,)")
        return self.table.levels(timesteps.to(z.device))

    def _split(self, z: Tensor, levels: Levels, output: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x̂ and the white noise ε̂ of z, in the dtype of the calculation; known history replaces x̂ there."""
        z, output = to_compute(z), to_compute(output)
        a, s = signal_and_noise(levels, z)
        x0_given = self.prediction == "x0"
        if self.dependent_noise:  # z = D u, and an eps or v output is D of standard diffusion's
            z = self._unmix(z, levels)
            output = output if x0_given else self._unmix(output, levels)
            clean, noise = standard.clean_and_noise(self.prediction, z, output, a, s)
        else:  # z = √ᾱ μ + √(1-ᾱ) ε with μ = D x, and an eps or v output is that of μ
            mean_output = self._mix(output, levels) if x0_given else output
            mean, noise = standard.clean_and_noise(self.prediction, z, mean_output, a, s)
            clean = output if x0_given else self._unmix(mean, levels)
        if history is None:
            return clean, noise
        _check_history(history, z)
        clean = torch.cat((to_compute(history), clean[:, history.shape[1] :]), 1)
        mean = clean if self.dependent_noise else self._mix(clean, levels)
        return clean, standard.implied_noise(z, mean, a, s)

    def _runs_fused(self, levels: Levels, *tensors: Tensor | NoiseCounter | None) -> bool:
        """Whether a fused kernel takes the call: mixing to do, one timestep per sample, no float64, no gradients.

        What the kernels don't cover runs on the torch code beside the call, which is also their specification here.
        """
        if levels.per_frame or not self._fusable:
            return False
        given = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
        wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
        return not wants_gradient and all(tensor.dtype != torch.float64 for tensor in given)

    def _noised_room(self, x0: Tensor, spent: tuple[Tensor, Tensor] | None) -> NoisedLatents | None:
        """``spent`` as room for z and the target like ``x0``; an x0 target is ``x0`` itself and takes no room."""
        if spent is None:
            return None
        likeness = (x0.shape, x0.dtype, x0.device)
        z, target = (room if (room.shape, room.dtype, room.device) == likeness else None for room in spent)
        return NoisedLatents(z, None if self.prediction == "x0" else target, None)

    def _mix(self, x: Tensor, levels: Levels) -> Tensor:
        return x if self.is_standard else frame_mix(x, levels.gamma_bar, backend=self.backend)

    def _unmix(self, y: Tensor, levels: Levels) -> Tensor:
        return y if self.is_standard else frame_unmix(y, levels.gamma_bar, backend=self.backend)

    def _draw(self, noise: Noise, like: Tensor) -> Tensor:
        """Noise of the shape and on the device of ``like``, in the dtype of the calculation."""
        if isinstance(noise, NoiseCounter):
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
            return kernels.normal(noise, like.shape, device=like.device, dtype=dtype, backend=self.backend)
        if noise.shape != like.shape:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}; it must have that of the frames, {tuple(like.shape)}"
            )
        return noise.to(torch.float64 if like.dtype == torch.float64 else torch.float32)

    def _measure_input_std(self, frame_autocovariance: Sequence[float] | np.ndarray | Tensor | None) -> Tensor:
        """√(ᾱ Var(D x) + 1 - ᾱ) by timestep, averaged over frames; noise has unit variance, mixed or not."""
        if frame_autocovariance is None:
            raise ValueError(
                "normalize_input needs frame_autocovariance, E[x^r x^s] of the data; give it or turn it off"
            )
        covariance = torch.as_tensor(frame_autocovariance, dtype=torch.float64).cpu()
        if covariance.ndim not in (1, 2) or covariance.shape[0] != covariance.shape[-1] or covariance.numel() == 0:
            raise ValueError(
                f"frame_autocovariance has shape {tuple(covariance.shape)}; it must be (S,) by lag, or (S, S)"
            )
        gamma_bar = torch.ones_like(self.gamma_bar) if self.is_standard else self.gamma_bar
        signal_variance = mixed_signal_variance(gamma_bar, covariance)
        return (self.alpha_bar * signal_variance + 1 - self.alpha_bar).sqrt()


def _check_history(history: Tensor, z: Tensor) -> None:
    num_history = history.shape[1] if history.ndim > 1 else 0
    if not 1 <= num_history <= z.shape[1] or history.shape != z[:, :num_history].shape:
        raise ValueError(
            f"history has shape {tuple(history.shape)}; it must be the first frames of a sequence {tuple(z.shape)}"
        )
