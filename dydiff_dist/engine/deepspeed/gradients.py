"""An engine's accumulated gradients: whether they are finite, and an update that is left out.

This touches names of DeepSpeed 0.19 that are private in spirit; tests/training/test_parity.py holds them to what is
said here, for every ZeRO stage.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dydiff_dist.errors import SharedError


def gradients_are_finite(engine) -> bool:
    """Whether this rank's share of the gradients holds no NaN or infinity, after the last backward pass of a step.

    They are reduced by then: what one rank's samples spoilt is not finite on the rank that owns the part. One pass over
    the share and one number from the device. Under ZeRO-0, where DeepSpeed keeps no gradient norm, the norm is left in
    the engine for `get_global_grad_norm`.
    """
    gradients = list(_local_gradients(engine))
    if engine.zero_optimization_stage() == 0:
        engine._global_grad_norm = torch.nn.utils.get_total_norm(gradients)
        return bool(engine._global_grad_norm.isfinite())
    sums = [gradient.sum(dtype=torch.float32) for gradient in gradients]
    return not sums or bool(torch.stack(sums).isfinite().all())


def finish_step(engine) -> None:
    """The update of ``engine`` after the last backward pass of a step.

    Raises:
        SharedError: gradients overflow float16 at every loss scale.
    """
    try:
        engine.step()
    except Exception as error:
        if "loss scale already at minimum" not in str(error):
            raise
        raise SharedError(
            "gradients overflow float16 even at the smallest loss scale; lower training.learning_rate, or set "
            "training.precision to bf16"
        ) from None


def discard_gradients(engine) -> None:
    """Ends the step of ``engine`` without an update: weights, moments and schedule stay, the gradients are gone.

    Under ZeRO it takes the path that DeepSpeed itself takes after an overflow, so its own bookkeeping is done.
    """
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()

    def mark(*_args: Any, **_keywords: Any) -> None:
        optimizer.overflow = True

    if stage == 0:
        changes = {"step": mark}
    elif stage == 3:
        changes = {"_overflow_check_and_loss_scale_update": mark}
    else:
        changes = {"check_grad_overflow": True, "check_overflow": mark}
    with _replaced(optimizer, changes):
        engine.step()
    optimizer.overflow = False


def _local_gradients(engine) -> Iterator[Tensor]:
    """What this rank's optimizer is about to use."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        yield from (p.grad for p in engine.module.parameters() if p.grad is not None)
    elif engine.zero_cpu_offload():
        shares = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
        yield from (share.grad for share in shares if share.grad is not None)
    else:
        for gradients in optimizer.averaged_gradients.values():
            yield from gradients or ()


@contextmanager
def _replaced(target: Any, changes: dict[str, Callable | bool]) -> Iterator[None]:
    """Instance attributes of ``target`` replaced for a while."""
    absent = object()
    before = {name: vars(target).get(name, absent) for name in changes}
    for name, value in changes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is absent:
                delattr(target, name)
            else:
                setattr(target, name, value)
