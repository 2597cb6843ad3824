"""Started on several ranks by test_sequence_parallel.py: frames shared between the ranks give the same prediction and
the same gradients as one rank with all of them. Prints ``sequence ok`` once per case on rank 0."""

import copy
import json
import sys

import torch
import torch.distributed as dist

from dydiff_dist.models import ExecutionConfig, VideoTransformerConfig, build_network

S, A = 8, 3
CASES = [
    {},
    {"causal_time": True, "qk_norm": "rms"},
    {"attention": "full", "patch_skip": True},
    {"attention": "full", "checkpoint_fraction": 0.5},
    {"patch_skip": True, "checkpoint_fraction": 1.0},
]


def check(case: dict) -> None:
    execution = ExecutionConfig(checkpoint_fraction=case.get("checkpoint_fraction", 0.0))
    options = {key: value for key, value in case.items() if key != "checkpoint_fraction"}
    config = VideoTransformerConfig(width=32, depth=2, num_heads=4, patch_size=2, **options)
    torch.manual_seed(0)
    whole = build_network(config, num_channels=2, num_action_channels=A).double()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    shared = build_network(config, num_channels=2, num_action_channels=A, execution=execution).double()
    shared.load_state_dict(copy.deepcopy(whole.state_dict()))
    shared.share_frames(dist.group.WORLD)

    z = torch.randn(2, S, 2, 4, 6, dtype=torch.float64)
    weight, actions = torch.randn_like(z), torch.randn(2, S, A, dtype=torch.float64)
    outputs, gradients = [], []
    for network in (whole, shared):
        inputs = [tensor.clone().requires_grad_() for tensor in (z, z[:, :3], actions)]
        out = network(inputs[0], torch.tensor([5, 700]), history=inputs[1], actions=inputs[2])
        (out * weight).sum().backward()
        outputs.append(out.detach())
        gradients.append([*inputs, *network.parameters()])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-12, rtol=1e-12)
    for full, part in zip(*gradients, strict=True):
        dist.all_reduce(part.grad)
        # float64: the same sums in another order
        torch.testing.assert_close(part.grad / dist.get_world_size(), full.grad, atol=1e-10, rtol=1e-10)
    assert all(tensor.grad.abs().max() > 0 for tensor in gradients[1])


def check_refusals() -> None:
    config = VideoTransformerConfig(width=32, depth=1, num_heads=1, patch_size=2)
    for frames, heads, what in ((7, 4, "7 frames"), (S, 1, "1 attention heads")):
        network = build_network(config.model_copy(update={"num_heads": heads}), num_channels=2)
        network.share_frames(dist.group.WORLD)
        z = torch.zeros(1, frames, 2, 4, 4)
        try:
            network(z, torch.tensor([0]), history=z[:, :1])
        except ValueError as error:
            assert f"execution.sequence_parallel_size {dist.get_world_size()} does not divide the {what}" in str(error)
        else:
            raise AssertionError(f"{what} were accepted")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    check_refusals()
    for case in CASES:
        check(case)
        if dist.get_rank() == 0:
            print("sequence ok:", json.dumps(case), flush=True)
    dist.destroy_process_group()
    sys.exit()
