"""DeepSpeed's engine behind our protocol; nothing outside of this folder touches it.

Names of DeepSpeed 0.19 that are private in spirit stand here; tests/engine/test_parity.py holds them to what is said
here, for every ZeRO stage.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.deepspeed import config as deepspeed_config
from dydiff_dist.engine.deepspeed import footprint as deepspeed_footprint
from dydiff_dist.engine.deepspeed.optimizer import build_optimizer
from dydiff_dist.engine.deepspeed.partitions import partitions_of
from dydiff_dist.engine.footprint import Footprint
from dydiff_dist.engine.optimizer import build_schedule, move_schedule, num_parameters
from dydiff_dist.engine.protocol import Engine
from dydiff_dist.errors import SharedError
from dydiff_dist.ranks.world import World

_COUNTS = ("global_steps", "global_samples", "skipped_steps")
_LOSS_SCALE_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedEngine(Engine):
    """ZeRO stages 0 to 3, with offloading to the host's memory; options: DeepSpeed's own, see ``config.py`` here."""

    def __init__(self, network: nn.Module, training: OptimizationConfig, options: Mapping[str, Any], world: World):
        deepspeed = import_deepspeed()
        # On CPUs DeepSpeed would compile its shared-memory collective at the first start, half a minute; gloo serves.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        network.to(world.device)
        if world.device.type == "cpu":
            options = deepspeed_config.fit_bucket(options, num_parameters(network.parameters()))
        optimizer = build_optimizer(network, training)
        self.deepspeed, *_ = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            lr_scheduler=build_schedule(optimizer, training),
            config=deepspeed_config.derive_deepspeed(options, training, world.world_size, world.ranks_per_sample),
        )
        self.module, self.partitions = self.deepspeed.module, partitions_of(self.deepspeed)
        self._stage, self._scales_loss = self.deepspeed.zero_optimization_stage(), training.precision == "fp16"
        self._norms: dict[int, Tensor] = {}
        if self._stage in (1, 2) and not self._scales_loss:
            self._clipping = training.gradient_clipping
            optimizer = self.deepspeed.optimizer
            optimizer.unscale_and_clip_grads = self._clip
            if not self.deepspeed.zero_cpu_offload():
                optimizer.get_grad_norm_direct = self._norm_of_group

    @classmethod
    def prepare(cls) -> None:
        """Says which accelerator DeepSpeed is to use and silences its chatter."""
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # 0.19 calls collectives by names that newer torch renamed; each call would print a warning on each rank
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)

    @classmethod
    def check(cls, training: OptimizationConfig, options: Mapping[str, Any], device_type: str) -> None:
        deepspeed_config.check_deepspeed(options, training)
        deepspeed_config.check_device(options, training, device_type)

    @classmethod
    def state_bytes(
        cls, num_params: int, world_size: int, training: OptimizationConfig, options: Mapping[str, Any]
    ) -> dict[str, int]:
        stage, storage_bytes = deepspeed_config.zero_stage(options), deepspeed_footprint.bytes_of(training.precision)
        return deepspeed_footprint.state_bytes(num_params, world_size, stage, storage_bytes)

    @classmethod
    def footprint(
        cls,
        training: OptimizationConfig,
        options: Mapping[str, Any],
        *,
        world_size: int,
        ranks_per_sample: int,
        on_gpu: bool,
    ) -> Footprint:
        return deepspeed_footprint.read_footprint(options, training, world_size, ranks_per_sample, on_gpu)

    @classmethod
    def describe(cls, options: Mapping[str, Any]) -> str:
        return f"ZeRO stage {deepspeed_config.zero_stage(options)}"

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.deepspeed(*args, **keywords)

    def backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()  # counts the micro-batch, no more

    def gradients_are_finite(self) -> bool:
        """One pass over this rank's share of the gradient, which is reduced by then, and one number from the device.

        The pass takes norms, which are finite where the gradients are. Under ZeRO-1 and 2 they serve for clipping too;
        under ZeRO-0, where DeepSpeed keeps no norm of the gradient, it is left in the engine for `gradient_norm`.
        """
        if self._scales_loss:
            return True
        gradients = list(self._local_gradients())
        if self._stage == 0:
            self.deepspeed._global_grad_norm = torch.nn.utils.get_total_norm(gradients)
            return bool(self.deepspeed._global_grad_norm.isfinite())
        if not gradients:
            return True
        norms = torch._foreach_norm(gradients, 2, dtype=torch.float64)  # as DeepSpeed takes them, but not one by one
        self._norms = {id(gradient): norm for gradient, norm in zip(gradients, norms, strict=True)}
        return bool(torch.stack(norms).isfinite().all())

    def finish(self) -> bool:
        try:
            self.deepspeed.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise SharedError(
                "gradients overflow float16 even at the smallest loss scale; lower training.learning_rate, or set "
                "training.precision to bf16"
            ) from None
        finally:
            self._norms = {}
        return self.deepspeed.was_step_applied()

    def discard(self) -> None:
        """Under ZeRO by the path that DeepSpeed itself takes after an overflow, so its own bookkeeping is done."""
        optimizer = self.deepspeed.optimizer

        def mark(*_args: Any, **_keywords: Any) -> None:
            optimizer.overflow = True

        changes: dict[str, Any]
        if self._stage == 0:
            changes = {"step": mark}
        elif self._stage == 3:
            changes = {"_overflow_check_and_loss_scale_update": mark}
        else:
            changes = {"check_grad_overflow": True, "check_overflow": mark}
        with _replaced(optimizer, changes):
            self.deepspeed.step()
        optimizer.overflow, self._norms = False, {}

    def gradient_norm(self) -> float:
        return float(self.deepspeed.get_global_grad_norm())

    def learning_rate(self) -> float:
        return self.deepspeed.get_lr()[0]

    def loss_scale(self) -> float | None:
        return float(self.deepspeed.optimizer.loss_scale) if self._scales_loss else None

    def numbers(self) -> dict[str, Any]:
        numbers = {name: getattr(self.deepspeed, name) for name in _COUNTS}
        numbers["schedule_steps"] = self.deepspeed.lr_scheduler.last_epoch
        if self._loss_scaler is not None:
            numbers["loss_scale"] = {name: getattr(self._loss_scaler, name) for name in _LOSS_SCALE_STATE}
        return numbers

    def restore_numbers(self, numbers: Mapping[str, Any]) -> None:
        for name in _COUNTS:
            setattr(self.deepspeed, name, numbers[name])
        if self._loss_scaler is not None:
            for name, value in numbers.get("loss_scale", {}).items():
                setattr(self._loss_scaler, name, value)
        move_schedule(self.deepspeed.lr_scheduler, numbers["schedule_steps"])

    @property
    def _loss_scaler(self) -> Any:
        """DeepSpeed's state of the search for a loss scale; None where there is no search."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return scaler if getattr(scaler, "dynamic", False) else None

    def _norm_of_group(self, gradients: list[Tensor], params: list[Tensor], norm_type: float = 2) -> Tensor:
        """Norm of an optimizer group's gradient over all ranks, from the norms that `gradients_are_finite` took: in the
        place of DeepSpeed's `get_grad_norm_direct`, which goes through the gradients one by one, as float64."""
        given = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
        if any(id(gradient) not in self._norms for gradient in given):
            self._norms |= {id(g): torch.linalg.vector_norm(g, dtype=torch.float64) for g in given}
        norms = [self._norms[id(gradient)] for gradient, _ in zip(given, params, strict=False)]
        total = torch.stack(norms).square().sum().float() if norms else torch.zeros((), device=self.deepspeed.device)
        torch.distributed.all_reduce(total, group=self.deepspeed.optimizer.dp_process_group)
        return total.sqrt()

    def _clip(self, groups: list[Tensor], total_norm: Tensor) -> None:
        """Scales float32 gradients down to the norm that is allowed: in the place of DeepSpeed's
        `unscale_and_clip_grads`, which waits for the norm to look whether it is one."""
        scale = torch.clamp((torch.as_tensor(total_norm) + 1e-6) / self._clipping, min=1.0)
        for gradient in groups:
            gradient.data.mul_(1.0 / scale)

    def _local_gradients(self) -> Iterator[Tensor]:
        """What this rank's optimizer is about to use."""
        optimizer = self.deepspeed.optimizer
        if self._stage == 0:
            yield from (p.grad for p in self.module.parameters() if p.grad is not None)
        elif self.deepspeed.zero_cpu_offload():
            yield from (key.grad for key in self.partitions.keys if key.grad is not None)
        else:
            for gradients in optimizer.averaged_gradients.values():
                yield from gradients or ()


@contextmanager
def _replaced(target: Any, changes: Mapping[str, Any]) -> Iterator[None]:
    """Instance attributes of ``target`` replaced for a while."""
    before = {name: vars(target)[name] for name in changes if name in vars(target)}
    for name, value in changes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name in changes:
            if name in before:
                setattr(target, name, before[name])
            else:
                delattr(target, name)


def import_deepspeed() -> ModuleType:
    """DeepSpeed without what it loads at each start and nothing here uses: MLflow, which its autotuner imports where it
    is installed, and torch's compiler, which the Muon optimizer's decorators load."""
    absent: Any = None  # what Python takes for a module that can't be imported
    hides = "mlflow" not in sys.modules
    if hides:
        sys.modules["mlflow"] = absent
    try:
        import deepspeed
    finally:
        if hides:
            del sys.modules["mlflow"]
    with _replaced(deepspeed.runtime.compiler, {"compile": lambda: lambda function: function}):
        import deepspeed.runtime.zero.muon.muon_optimizer
    return deepspeed
