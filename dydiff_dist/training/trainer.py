"""The training loop, as named steps."""

import time
from pathlib import Path

import torch
from torch import Tensor

from dydiff_dist.config import RunConfig
from dydiff_dist.data.stream import TrainStream
from dydiff_dist.diffusion import loss_by_timestep_bin
from dydiff_dist.forecasting import save_model
from dydiff_dist.models import build_network, drop_history
from dydiff_dist.training.checkpoint import CheckpointStore
from dydiff_dist.training.config import accumulation_steps
from dydiff_dist.training.distributed import World, agree_max, set_cpu_threads, start_process_group, sum_over_ranks
from dydiff_dist.training.ema import ShardedEMA
from dydiff_dist.training.engine import build_engine
from dydiff_dist.training.interruption import Interruption
from dydiff_dist.training.plan import RunPlan
from dydiff_dist.training.progress import RateMeter, RunLog
from dydiff_dist.training.validation import Validation
from dydiff_kernels import NoiseCounter, Stream, normal, uniform

_NUM_LOSS_BINS = 4


class Trainer:
    """One run on this rank: builds everything, resumes where the run stopped, trains, exports the averaged weights."""

    config: RunConfig
    world: World
    step: int
    """Optimizer steps done."""

    def __init__(self, plan: RunPlan):
        self.plan, self.config, self.world = plan, plan.config, plan.world
        set_cpu_threads(self.world)
        start_process_group(self.world)
        self.folder = Path(self.config.output_dir)
        self.diffusion = self.config.diffusion.build(plan.frame_autocovariance, backend=self.config.kernels.backend)
        torch.manual_seed(self.config.seed)
        network = build_network(self.config.model, **plan.network_sizes)
        self.engine = build_engine(network, self.config.deepspeed, self.config.training, self.world)
        self.ema = ShardedEMA(self.engine, self.config.training.ema_decay)
        self.checkpoints = CheckpointStore(
            self.folder / "checkpoints", self.world, self.config.training.keep_last_checkpoints
        )
        self.validation = Validation(plan, self.diffusion)
        self.step = self.checkpoints.load_latest(self.engine, self.ema, plan.check_same_run)

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None:
            torch.distributed.destroy_process_group()

    def train(self) -> int:
        """Trains to the configured step; returns the signal that stopped it early, 0 if it is done."""
        training = self.config.training
        micro_batches = iter(self._open_stream())
        log = RunLog(
            self.folder / "tensorboard", first_step=self.step, num_steps=training.steps, enabled=self.world.is_main
        )
        if self.step:
            log.say(f"resumed after step {self.step}" if self.step < training.steps else "all steps are complete")
        meter, signal = RateMeter(), 0
        with Interruption() as interruption:
            while self.step < training.steps and not signal:
                losses, wait_sec = self._train_step(micro_batches)
                meter.add(training.global_batch_size, wait_sec)
                log.advance()
                if self.step % training.log_every_steps == 0:
                    self._log_step(log, losses, meter)
                if training.validate_every_steps and self.step % training.validate_every_steps == 0:
                    self.validation.run(self.step, self.ema.gather(), log)
                    meter.read()
                signal = interruption.agreed()
                if signal or self.step % training.checkpoint_every_steps == 0 or self.step == training.steps:
                    log.say(f"checkpoint: {self._save()}")
            if not signal:
                self._export(log)
        log.close()
        return signal

    def _train_step(self, micro_batches) -> tuple[list[tuple[Tensor, Tensor]], float]:
        """One optimizer update; returns per-sample losses with their timesteps, and seconds spent waiting for data."""
        losses, wait_sec = [], 0.0
        for _ in range(accumulation_steps(self.config.training, self.world.world_size)):
            start = time.perf_counter()
            batch = next(micro_batches)
            wait_sec += time.perf_counter() - start
            losses.append(self._forward_backward(batch))
            self.engine.step()
        self.step += 1
        self.ema.update(self.step)
        return losses, wait_sec

    def _forward_backward(self, batch: dict) -> tuple[Tensor, Tensor]:
        """One micro-batch through noising, network and loss; returns per-sample losses and timesteps."""
        device = self.world.device
        x0, index = batch["frames"].to(device, non_blocking=True), batch["sample_index"]
        actions = batch["actions"].to(device, non_blocking=True) if "actions" in batch else None
        timesteps = self._draw_timesteps(index).to(device)
        z, target = self.diffusion.add_noise(x0, timesteps, self._counter(index, Stream.DIFFUSION))
        output = self.engine(
            self.diffusion.model_input(z, timesteps).to(self.plan.network_dtype),
            timesteps,
            history=self._history(x0, index).to(self.plan.network_dtype),
            actions=actions,
        )
        loss, per_sample = self.diffusion.loss(
            output.float(), target, timesteps, num_history_frames=self.config.data.num_history_frames
        )
        self.engine.backward(loss)
        return per_sample.detach(), timesteps

    def _counter(self, sample_index: Tensor, stream: Stream) -> NoiseCounter:
        return NoiseCounter(seed=self.config.seed, sample_index=sample_index, step=self.step, stream=stream)

    def _draw_timesteps(self, sample_index: Tensor) -> Tensor:
        """Uniform timesteps, one a sample, from the counter: the same on any number of ranks."""
        draw = uniform(self._counter(sample_index, Stream.TIMESTEP), 1)[:, 0]
        num_timesteps = self.diffusion.num_timesteps
        return (draw.double() * num_timesteps).long().clamp(max=num_timesteps - 1)

    def _history(self, x0: Tensor, sample_index: Tensor) -> Tensor:
        """Clean history frames; noise instead in the share of samples that trains the unconditional branch."""
        history = x0[:, : self.config.data.num_history_frames]
        probability = self.config.training.conditioning_dropout
        if probability == 0:
            return history
        counter = self._counter(sample_index, Stream.CONDITIONING_DROPOUT)
        dropped = (uniform(counter, 1)[:, 0] < probability).to(history.device)
        # the noise comes of another stream than the decision, so that the two are independent
        noise = normal(self._counter(sample_index, Stream.HISTORY_NOISE), history.shape, device=history.device)
        return drop_history(history, noise, dropped)

    def _log_step(self, log: RunLog, losses: list[tuple[Tensor, Tensor]], meter: RateMeter) -> None:
        """Reduces the step's losses over ranks and writes line and scalars; stops the run if the loss is not finite."""
        per_sample = torch.cat([loss for loss, _ in losses]).double()
        timesteps = torch.cat([t for _, t in losses])
        sums, counts = loss_by_timestep_bin(per_sample, timesteps, self.diffusion.num_timesteps, _NUM_LOSS_BINS)
        totals = sum_over_ranks(torch.stack((sums, counts)).cpu())
        loss = float(totals[0].sum() / totals[1].sum())
        samples_per_sec, wait_fraction = meter.read()
        lr, grad_norm = self.engine.get_lr()[0], float(self.engine.get_global_grad_norm() or 0.0)
        if agree_max(int(not torch.isfinite(torch.tensor(loss)))):
            raise ValueError(
                f"the loss is {loss} at step {self.step}; lower training.learning_rate or training.gradient_clipping "
                "(the last checkpoint is kept)"
            )
        log.progress(self.step, loss=loss, samples_per_sec=samples_per_sec, wait_fraction=wait_fraction, lr=lr)
        bins = {
            f"loss/timestep_bin_{index}": float(total / count)
            for index, (total, count) in enumerate(totals.T)
            if count > 0
        }
        log.scalars(
            self.step,
            {
                "loss/train": loss,
                **bins,
                "optimizer/learning_rate": lr,
                "optimizer/gradient_norm": grad_norm,
                "speed/samples_per_sec": samples_per_sec,
                "speed/data_wait_fraction": wait_fraction,
            },
        )

    def _open_stream(self) -> TrainStream:
        """The data from the run's present position on."""
        return TrainStream(
            self.plan.train_shards,
            self.config.data,
            seed=self.config.seed,
            global_batch_size=self.config.training.global_batch_size,
            micro_batch_size=self.config.training.micro_batch_per_gpu,
            rank=self.world.rank,
            world_size=self.world.world_size,
            start_step=self.step,
        )

    def _save(self) -> Path:
        return self.checkpoints.save(self.step, self.engine, self.ema, self.config.model_dump(mode="json"))

    def _export(self, log: RunLog) -> None:
        """Writes the averaged weights with all that a forecast needs to `model/`."""
        weights = self.ema.gather()
        if self.world.is_main:
            save_model(self.folder / "model", weights, self.config.model_dump(mode="json"), self.plan.data_schema)
            log.say(f"model: {self.folder / 'model'}")
