"""The cost of the dynamics is measured on two runs that differ in nothing else."""

import pytest
import torch

from dydiff_dist.benchmarks.training_step import DYDIFF, STANDARD, measure_overhead, peak_memory_mib, twins
from dydiff_dist.benchmarks.turns import ratios, spread
from dydiff_dist.ranks.world import read_world
from dydiff_dist.tasks.config import RunConfig
from dydiff_dist.training.config import load_config


def test_twins_differ_in_the_dynamics_alone(study_tree):
    config = load_config(study_tree["base"], RunConfig)
    pair = {name: twin.model_dump() for name, twin in twins(config).items()}
    assert pair[STANDARD]["diffusion"].pop("gamma_schedule") == "none"
    assert pair[DYDIFF]["diffusion"].pop("gamma_schedule") == "cosine"
    assert pair[STANDARD] == pair[DYDIFF]


def test_standard_diffusion_is_refused(study_tree):
    config = load_config(study_tree["base"], RunConfig, ["diffusion.gamma_ratio=0"])
    with pytest.raises(ValueError, match="is standard diffusion; give one with gamma_ratio above 0"):
        measure_overhead(config, read_world())


@pytest.mark.slow
def test_times_and_memory_of_both(study_tree):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config, world = load_config(study_tree["base"], RunConfig), read_world()
    seconds = measure_overhead(config, world, rounds=3)
    torch.set_num_threads(threads)
    assert all(len(seconds[name]) == 3 and min(seconds[name]) > 0 for name in (STANDARD, DYDIFF))
    assert all(peak_memory_mib(twin, world) > 1 for twin in twins(config).values())
    ratio = spread(ratios(seconds[DYDIFF], seconds[STANDARD]))
    assert ratio.p20 <= ratio.median <= ratio.p80
