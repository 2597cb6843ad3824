"""The training loop, as named steps. What is trained stands in a `Task`."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dydiff_dist.checkpoints.folder import list_checkpoints
from dydiff_dist.checkpoints.position import RunPosition
from dydiff_dist.checkpoints.store import CheckpointStore
from dydiff_dist.data.stream import TrainStream
from dydiff_dist.engine.config import accumulation_steps
from dydiff_dist.engine.ema import EMA
from dydiff_dist.engine.engines import ENGINES
from dydiff_dist.engine.protocol import Engine
from dydiff_dist.engine.state import AVERAGED, EngineState
from dydiff_dist.errors import SharedError
from dydiff_dist.ranks.collectives import agree_max, describe_layout, sum_over_ranks
from dydiff_dist.ranks.rendezvous import must_end, start_process_group
from dydiff_dist.ranks.signals import Interruption
from dydiff_dist.ranks.watchdog import Activity, Watchdog
from dydiff_dist.ranks.world import World, set_cpu_threads
from dydiff_dist.training.config import BaseRunConfig
from dydiff_dist.training.loggers import open_loggers
from dydiff_dist.training.metrics import Meter, find_peak
from dydiff_dist.training.nonfinite import NonFiniteGuard, StepRecord
from dydiff_dist.training.progress import RunLog
from dydiff_dist.training.task import Task


class Trainer:
    """One run on this rank: builds everything, resumes where the run stopped, trains, exports the averaged weights."""

    config: BaseRunConfig
    world: World
    engines: dict[str, Engine]
    """Around each of the task's networks, by name."""
    position: RunPosition

    def __init__(self, task: Task):
        self.task, self.plan = task, task.plan
        self.config, self.world = self.plan.config, self.plan.world
        self.folder = Path(self.config.output_dir)
        self.activity = Activity()

    def __enter__(self) -> "Trainer":
        """Joins the other ranks, builds everything and loads the last checkpoint."""
        faults = self.config.training.faults
        with ExitStack() as stack:
            set_cpu_threads(self.world)
            session = start_process_group(self.world, faults.exchange_timeout_sec / 60, faults.join_timeout_sec / 60)
            self.watchdog = stack.enter_context(Watchdog(faults, self.world, self.activity, self._say, session))
            with self.watchdog.explaining():
                self._say(f"world:    {describe_layout(self.world)}")
                self.activity.enter("building the networks")
                self._build()
                self.activity.enter("loading the last checkpoint")
                self.position = self._load()
                self._open_log()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        faults = self.config.training.faults
        if exception[0] is None:
            with self.watchdog.explaining():
                self.checkpoints.close()
        self._stack.__exit__(*exception)
        if exception[0] is not None:
            self.checkpoints.wait_briefly(faults.dead_after_sec)
            return
        with must_end(faults.dead_after_sec, "error: the run is complete, but its ranks could not take leave"):
            torch.distributed.destroy_process_group()

    def _build(self) -> None:
        """Networks, engines and what belongs to them."""
        training = self.config.training
        torch.manual_seed(self.config.seed)
        networks = self.task.build_networks()
        self.task.join_ranks(networks)
        self.engines = {
            name: ENGINES[self.config.engine](
                network, self.task.training_of(name), self.config.engine_options, self.world
            )
            for name, network in networks.items()
        }
        self.ema = EMA(self.engines[AVERAGED].partitions, training.ema_decay)
        self.checkpoints = CheckpointStore(
            self.folder / "checkpoints",
            self.world,
            {
                name: EngineState(engine, self.ema if name == AVERAGED else None, self.world.rank)
                for name, engine in self.engines.items()
            },
            keep_last=training.keep_last_checkpoints,
            keep_every=training.keep_every_steps,
            asynchronous=training.async_checkpoints,
        )
        self.guard = NonFiniteGuard(
            training.nonfinite, self.folder / "nonfinite", self.world, training.global_batch_size
        )

    def _open_log(self) -> None:
        """The log from the run's present position on; says what is worth knowing before the first step."""
        training, is_main = self.config.training, self.world.is_main
        names, tree = training.loggers if is_main else (), self.config.model_dump(mode="json")
        loggers = open_loggers(names, self.folder, self.step, tree)
        self.log = RunLog(loggers, first_step=self.step, num_steps=training.steps, enabled=is_main)
        if self.step:
            self.log.say("all steps are complete" if self.step >= training.steps else f"resumed after step {self.step}")
        peak, cost = find_peak(self.world, training.precision), self.task.sample_cost()
        self.meter = Meter(self.world, training.global_batch_size, cost, peak)
        if cost is not None:
            text = f"{peak.flops_per_sec / 1e9:.4g} GFLOP/s, {peak.source}" if peak else "unknown, so no MFU"
            self.log.say(f"peak of a rank: {text}")

    @property
    def step(self) -> int:
        """Optimizer updates done so far."""
        return self.position.step

    def train(self) -> int:
        """Trains to the configured step; returns the signal that stopped it early, 0 if it is done.

        Raises:
            PeerLostError: another rank ended or froze.
            SharedError: the run can't go on; raised by all ranks alike.
        """
        grace_sec = self.config.training.faults.grace_sec
        interruption = Interruption(grace_sec, self._last_saved, self.world.is_main)
        with interruption, self.watchdog.explaining():
            signal = self._loop(interruption)
            self.checkpoints.wait()
            if not signal:
                self._export()
        self.log.close()
        return signal

    def _loop(self, interruption: Interruption) -> int:
        """Steps until the last one or a signal; returns the signal."""
        training, signal = self.config.training, 0
        self._stream = self._open_stream()
        micro_batches = iter(self._stream)
        self.meter.restart()
        while self.step < training.steps and not signal:
            record = self._forward_backward(micro_batches)
            self.activity.enter("waiting for the other ranks")
            bad = self.guard.is_bad(record, self.engines)
            signal, any_bad, save_failed = agree_max(
                interruption.received, int(bad), int(self.checkpoints.has_failed())
            )
            if save_failed:
                self.checkpoints.wait()  # raises what went wrong, on every rank
            interruption.start_grace(signal)
            updated = not any_bad and self._update(record)
            if any_bad:
                self._pass_over(record)
            self.meter.add(record.wait_sec)
            if updated:
                self._after_update(record, leaving=bool(signal))
            if signal:
                self._save()
        return signal

    def _after_update(self, record: StepRecord, leaving: bool) -> None:
        """What falls due on a step: log, validation, checkpoint."""
        training = self.config.training
        self.log.advance()
        if self.step % training.log_every_steps == 0:
            self._log_step(record)
        validates = self.plan.valid_shards is not None and training.validate_every_steps > 0
        due = self.step % max(1, training.validate_every_steps) == 0 or self.step == training.steps
        if validates and due and not leaving:
            self.activity.enter("validating")
            self.task.validate(self.step, self.ema.gather(), self.log)
            self.meter.restart()
        if (self.step % training.checkpoint_every_steps == 0 or self.step == training.steps) and not leaving:
            self._save()

    def _forward_backward(self, micro_batches: Iterator[dict]) -> StepRecord:
        """Forward and backward passes of one step, all of this rank's micro-batches."""
        record = StepRecord()
        for _ in range(accumulation_steps(self.config.training, self.world.num_replicas)):
            self.activity.enter("waiting for data")
            start = time.perf_counter()
            batch = next(micro_batches)
            record.wait_sec += time.perf_counter() - start
            record.read(batch)
            self.activity.enter("in the forward pass")
            for part in self.task.losses(self.engines, batch, self.step):
                self.activity.enter("in the backward pass")
                self.engines[part.network].backward(part.loss)
                record.parts.append(replace(part, loss=part.loss.detach()))
        return record

    def _update(self, record: StepRecord) -> bool:
        """The optimizer's update; False where the loss scale was too high for this batch and is lowered instead."""
        self.activity.enter("updating the weights")
        updated = all([self.engines[name].finish() for name in record.networks])
        self.guard.passed()
        self.position = RunPosition(self.step + updated, self.position.samples + self.config.training.global_batch_size)
        self.activity.step = self.step
        if updated:
            self.ema.update(self.step)
        return updated

    def _pass_over(self, record: StepRecord) -> None:
        """Leaves the update out, and follows the policy where that has happened too often."""
        for name in record.networks:
            self.engines[name].discard()
        action, line = self.guard.judge(record, self.position)
        self.position = replace(self.position, samples=self.position.samples + self.config.training.global_batch_size)
        self.log.say(line)
        if action == "rollback":
            self._roll_back()

    def _roll_back(self) -> None:
        """Back to the last checkpoint, on with the data that follow."""
        self.activity.enter("rolling back")
        self.checkpoints.wait()
        loaded = self.checkpoints.load_latest(self.plan.check_same_run)
        if loaded == RunPosition():
            raise SharedError("there is no checkpoint to roll back to; lower training.learning_rate")
        self.position = replace(loaded, samples=self.position.samples)
        self.guard.record_rollback(loaded, self.position)
        self.log.rewind(self.step)
        number = self.guard.batch_number(self.position)
        self.log.say(f"rolled back to step {self.step}; the data go on with batch {number}")

    def _log_step(self, record: StepRecord) -> None:
        """Reduces the step's values over ranks and writes line and scalars."""
        scalars = self.task.scalars(record.parts)
        totals = sum_over_ranks(torch.stack(tuple(scalars.values())))
        means = {name: float(total / count) for name, (total, count) in zip(scalars, totals, strict=True) if count > 0}
        engine, speed = self.engines[AVERAGED], self.meter.read(self._stream.damaged_fraction)
        lr, grad_norm, loss_scale = engine.learning_rate(), engine.gradient_norm(), engine.loss_scale()
        self.log.progress(
            self.step, f"loss {means['loss/train']:.4f}, gradient {grad_norm:.3g}, lr {lr:.2e}, {speed.line}"
        )
        optimizer = {"optimizer/learning_rate": lr, "optimizer/gradient_norm": grad_norm}
        if loss_scale is not None:
            optimizer["optimizer/loss_scale"] = loss_scale
        if self.guard.num_skipped:
            optimizer["optimizer/skipped_batches"] = self.guard.num_skipped
        self.log.scalars(self.step, {**means, **optimizer, **speed.scalars})

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
            start_position=self.position.samples,
        )

    def _load(self) -> RunPosition:
        """The last checkpoint, if there is one, and the data after the batches that a rollback passed over."""
        loaded = self.checkpoints.load_latest(self.plan.check_same_run)
        return self.guard.after_rollback(loaded)

    def _say(self, line: str) -> None:
        """Prints a line, above the progress bar once there is one."""
        if hasattr(self, "log"):
            self.log.say(line)
        elif self.world.is_main:
            print(line, flush=True)

    def _last_saved(self) -> str:
        """What a later start goes on from, in words."""
        saved = list_checkpoints(self.folder / "checkpoints")
        return saved[-1].name if saved else "the beginning"

    def _save(self) -> None:
        """Begins a checkpoint; the one before is complete by then."""
        self.activity.enter("saving a checkpoint")
        config, exported = self.config.model_dump(mode="json"), self.task.exported_facts()
        report = self.checkpoints.save(self.position, config, exported, self.plan.data_sha256)
        self.log.say(f"checkpoint: {report}")
        scalars = {"checkpoint/pause_sec": report.pause_sec, "checkpoint/bytes_per_rank": float(report.num_bytes)}
        self.log.scalars(self.step, scalars)
        self.meter.restart()

    def _export(self) -> None:
        """Writes the averaged weights with all that their use needs to `model/`."""
        self.activity.enter("exporting the model")
        weights = self.ema.gather()
        if self.world.is_main:
            self.task.export(self.folder / "model", weights)
            self.log.say(f"model: {self.folder / 'model'}")
