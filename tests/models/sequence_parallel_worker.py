"""Started by test_sequence_parallel.py on several ranks, in groups of the size given: each group takes a part of the
batch, the ranks of a group share its frames. Predictions and gradients averaged over all ranks equal those of one rank
with everything. Prints ``sequence ok`` once per case on rank 0."""

import copy
import json

import torch
import torch.distributed as dist
from built_networks import build_network

from dydiff_dist.models import ExecutionConfig, UNetConfig, VideoTransformerConfig
from dydiff_dist.ranks.collectives import sample_group
from dydiff_dist.ranks.world import World, read_world

B, S, A = 4, 8, 3
CASES = [
    {},
    {"qk_norm": "rms"},
    {"attention": "full", "patch_skip": True},
    {"attention": "full", "checkpoint_fraction": 0.5},
    {"patch_skip": True, "checkpoint_fraction": 1.0},
    {"network": "unet", "channel_multipliers": (1, 2), "checkpoint_fraction": 0.5},
]


def check(case: dict, world: World, group: dist.ProcessGroup) -> None:
    execution = ExecutionConfig(checkpoint_fraction=case.get("checkpoint_fraction", 0.0))
    options = {key: value for key, value in case.items() if key != "checkpoint_fraction"}
    if options.get("network") == "unet":
        config = UNetConfig(width=32, **options)
    else:
        config = VideoTransformerConfig(width=32, depth=2, num_heads=4, patch_size=2, **options)
    torch.manual_seed(0)
    whole = build_network(config, num_channels=2, num_action_channels=A).double()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    shared = build_network(config, num_channels=2, num_action_channels=A, execution=execution).double()
    shared.load_state_dict(copy.deepcopy(whole.state_dict()))
    shared.share_frames(group)

    z = torch.randn(B, S, 2, 4, 6, dtype=torch.float64)
    weight, actions = torch.randn_like(z), torch.randn(B, S, A, dtype=torch.float64)
    timesteps = torch.tensor([5, 700, 20, 999])
    share = B // world.num_replicas
    mine = slice(world.replica * share, (world.replica + 1) * share)
    outputs, gradients = [], []
    for network, rows in ((whole, slice(None)), (shared, mine)):
        inputs = [tensor[rows].clone().requires_grad_() for tensor in (z, z[:, :3], actions)]
        out = network(inputs[0], timesteps[rows], history=inputs[1], actions=inputs[2])
        (out * weight[rows]).flatten(1).sum(1).mean().backward()
        outputs.append(out.detach())
        gradients.append(([tensor.grad for tensor in inputs], [p.grad for p in network.parameters()]))
    (full_inputs, full_weights), (part_inputs, part_weights) = gradients
    # float64: the same sums in another order
    close = {"atol": 1e-10, "rtol": 1e-10}
    torch.testing.assert_close(outputs[1], outputs[0][mine], **close)
    for full, part in zip(full_weights, part_weights, strict=True):
        dist.all_reduce(part)
        assert full.abs().max() > 0
        torch.testing.assert_close(part / world.world_size, full, **close)
    for full, part in zip(full_inputs, part_inputs, strict=True):
        dist.all_reduce(part, group=group)
        # the mean over samples is taken within a replica, the loss counted by every rank of it
        torch.testing.assert_close(part / world.ranks_per_sample / world.num_replicas, full[mine], **close)


def check_refusals(group: dist.ProcessGroup) -> None:
    config = VideoTransformerConfig(width=32, depth=1, num_heads=1, patch_size=2)
    for frames, heads, what in ((7, 4, "7 frames"), (S, 1, "1 attention heads")):
        network = build_network(config.model_copy(update={"num_heads": heads}), num_channels=2)
        network.share_frames(group)
        z = torch.zeros(1, frames, 2, 4, 4)
        try:
            network(z, torch.tensor([0]), history=z[:, :1])
        except ValueError as error:
            assert f"execution.sequence_parallel_size 2 does not divide the {what}" in str(error), error
        else:
            raise AssertionError(f"{what} were accepted")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = read_world().with_ranks_per_sample(2)
    group = sample_group(world)
    check_refusals(group)
    for case in CASES:
        check(case, world, group)
        if world.is_main:
            print("sequence ok:", json.dumps(case), flush=True)
    dist.barrier()  # no rank takes its connections down while another still uses them
    dist.destroy_process_group()
