"""Optimizers by name, and what stands in for one that can't be compiled."""

import logging

import pytest
import torch
from deepspeed.ops.op_builder import CPUAdamBuilder

from dydiff_dist.engine.config import OptimizationConfig
from dydiff_dist.engine.deepspeed.config import check_device, derive_deepspeed
from dydiff_dist.engine.deepspeed.optimizer import build_optimizer
from dydiff_dist.engine.optimizer import decay_groups


def training(**changes) -> OptimizationConfig:
    sizes = {"steps": 10, "global_batch_size": 4, "micro_batch_per_gpu": 2, "learning_rate": 1e-3}
    return OptimizationConfig(**sizes | changes)


def test_what_cannot_be_compiled_is_replaced_by_torch_and_said(monkeypatch, caplog):
    def fail(self, verbose=True):
        raise RuntimeError("Error building extension 'cpu_adam'\nninja: long story")

    monkeypatch.setattr(CPUAdamBuilder, "load", fail)
    with caplog.at_level(logging.WARNING):
        optimizer = build_optimizer(torch.nn.Linear(2, 2), training(optimizer="deepspeed_cpu_adam", weight_decay=0.1))
    assert type(optimizer) is torch.optim.AdamW
    assert "torch's AdamW, because deepspeed_cpu_adam can't be compiled here: Error building" in caplog.text
    assert "ninja" not in caplog.text
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_matrices_are_decayed_and_vectors_are_not():
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    matrices, vectors = decay_groups(network, 0.1)
    assert [p.ndim for p in matrices["params"]] == [2] and matrices["weight_decay"] == 0.1
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1] and vectors["weight_decay"] == 0.0


def test_what_a_device_cannot_do_is_refused():
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        with pytest.raises(ValueError, match="'fp16', which DeepSpeed refuses on this CPU"):
            check_device({}, training(precision="fp16"), "cpu")
    check_device({}, training(precision="fp16"), "cuda")
    with pytest.raises(ValueError, match="offload_optimizer"):
        check_device({}, training(optimizer="deepspeed_cpu_adam"), "cuda")
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    check_device(offload, training(optimizer="deepspeed_cpu_adam"), "cuda")


def test_loss_scale_and_offloading_reach_deepspeed():
    section = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    settings = derive_deepspeed(section, training(precision="fp16", loss_scale=128.0), 2)
    assert settings["fp16"] == {"enabled": True, "loss_scale": 128.0} and not settings["bf16"]["enabled"]
    assert settings["zero_force_ds_cpu_optimizer"] is False
    with pytest.raises(ValueError, match="'fp16' needs float32 master weights"):
        derive_deepspeed({}, training(precision="fp16"), 1)
