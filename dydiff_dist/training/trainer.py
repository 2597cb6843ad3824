"""The training loop, as named steps. What is trained stands in a `Task`."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dydiff_dist.config import BaseRunConfig
from dydiff_dist.data.stream import TrainStream
from dydiff_dist.training.checkpoint import CheckpointStore
from dydiff_dist.training.config import accumulation_steps
from dydiff_dist.training.distributed import World, agree_max, set_cpu_threads, start_process_group, sum_over_ranks
from dydiff_dist.training.ema import ShardedEMA
from dydiff_dist.training.engine import build_engine
from dydiff_dist.training.interruption import Interruption
from dydiff_dist.training.position import RunPosition
from dydiff_dist.training.progress import RateMeter, RunLog
from dydiff_dist.training.task import MicroLoss, Task

_SETTLE_SEC = 60.0
"""On the way out after an error, the longest wait for a checkpoint that is being written."""


class Trainer:
    """One run on this rank: builds everything, resumes where the run stopped, trains, exports the averaged weights."""

    config: BaseRunConfig
    world: World
    engines: dict[str, Any]
    """DeepSpeed's engine around each of the task's networks, by name."""
    position: RunPosition

    def __init__(self, task: Task):
        self.task, self.plan = task, task.plan
        self.config, self.world = self.plan.config, self.plan.world
        set_cpu_threads(self.world)
        start_process_group(self.world)
        self.folder = Path(self.config.output_dir)
        torch.manual_seed(self.config.seed)
        networks = task.build_networks()
        task.join_ranks(networks)
        self.engines = {
            name: build_engine(network, self.config.deepspeed, task.training_of(name), self.world)
            for name, network in networks.items()
        }
        self.ema = ShardedEMA(self.engines["model"], self.config.training.ema_decay)
        self.checkpoints = CheckpointStore(
            self.folder / "checkpoints",
            self.world,
            keep_last=self.config.training.keep_last_checkpoints,
            keep_every=self.config.training.keep_every_steps,
            asynchronous=self.config.training.async_checkpoints,
        )
        self.position = self.checkpoints.load_latest(self.engines, self.ema, self.plan.check_same_run)

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None:
            self.checkpoints.close()
            torch.distributed.destroy_process_group()
        else:
            self.checkpoints.settle(_SETTLE_SEC)

    @property
    def step(self) -> int:
        """Optimizer updates done."""
        return self.position.step

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
                parts, wait_sec = self._train_step(micro_batches)
                meter.add(training.global_batch_size, wait_sec)
                log.advance()
                if self.step % training.log_every_steps == 0:
                    self._log_step(log, parts, meter)
                if self._is_due(training.validate_every_steps):
                    self.task.validate(self.step, self.ema.gather(), log)
                    meter.read()
                signal = interruption.agreed()
                if signal or self.step % training.checkpoint_every_steps == 0 or self.step == training.steps:
                    self._save(log)
            self.checkpoints.wait()
            if not signal:
                self._export(log)
        log.close()
        return signal

    def _is_due(self, every_steps: int) -> bool:
        """Whether a validation falls on this step."""
        return self.plan.valid_shards is not None and every_steps > 0 and self.step % every_steps == 0

    def _train_step(self, micro_batches: Iterator[dict]) -> tuple[list[MicroLoss], float]:
        """One optimizer update; returns this rank's losses, and seconds spent waiting for data."""
        parts, wait_sec = [], 0.0
        for _ in range(accumulation_steps(self.config.training, self.world.num_replicas)):
            start = time.perf_counter()
            batch = next(micro_batches)
            wait_sec += time.perf_counter() - start
            parts += self._forward_backward(batch)
        self.position = RunPosition(self.position.step + 1, self.position.batches + 1)
        self.ema.update(self.step)
        return parts, wait_sec

    def _forward_backward(self, batch: dict) -> list[MicroLoss]:
        """One micro-batch through every network; the last one of a step also updates the weights."""
        parts = []
        for part in self.task.losses(self.engines, batch, self.step):
            self.engines[part.network].backward(part.loss)
            parts.append(part)
        for name in dict.fromkeys(part.network for part in parts):
            self.engines[name].step()  # DeepSpeed counts micro-batches and updates after the last one
        return parts

    def _log_step(self, log: RunLog, parts: list[MicroLoss], meter: RateMeter) -> None:
        """Reduces the step's values over ranks and writes line and scalars; stops the run if the loss is not finite."""
        scalars = self.task.scalars(parts)
        totals = sum_over_ranks(torch.stack(tuple(scalars.values())))
        means = {name: float(total / count) for name, (total, count) in zip(scalars, totals, strict=True) if count > 0}
        loss = means["loss/train"]
        if agree_max(int(not torch.isfinite(torch.tensor(loss)))):
            raise ValueError(
                f"the loss is {loss} at step {self.step}; lower training.learning_rate or training.gradient_clipping "
                "(the last checkpoint is kept)"
            )
        if agree_max(int(self.checkpoints.has_failed())):
            self.checkpoints.wait()  # raises what went wrong, on every rank
        engine = self.engines["model"]
        samples_per_sec, wait_fraction = meter.read()
        lr, grad_norm = engine.get_lr()[0], float(engine.get_global_grad_norm() or 0.0)
        log.progress(self.step, loss=loss, samples_per_sec=samples_per_sec, wait_fraction=wait_fraction, lr=lr)
        log.scalars(
            self.step,
            {
                **means,
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
            rank=self.world.replica,
            world_size=self.world.num_replicas,
            start_step=self.position.batches,
        )

    def _save(self, log: RunLog) -> None:
        """Begins a checkpoint; the one before is complete by then."""
        config, exported = self.config.model_dump(mode="json"), self.task.exported_facts()
        report = self.checkpoints.save(self.position, self.engines, self.ema, config, exported)
        log.say(f"checkpoint: {report}")
        scalars = {"checkpoint/pause_sec": report.pause_sec, "checkpoint/bytes_per_rank": float(report.num_bytes)}
        log.scalars(self.step, scalars)

    def _export(self, log: RunLog) -> None:
        """Writes the averaged weights with all that their use needs to `model/`."""
        weights = self.ema.gather()
        if self.world.is_main:
            self.task.export(self.folder / "model", weights)
            log.say(f"model: {self.folder / 'model'}")
