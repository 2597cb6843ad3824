"""The cost of the dynamics is measured on two runs that differ in nothing else."""

import pytest
import torch

from dydiff_dist.benchmarks.overhead import DYDIFF, STANDARD, measure_overhead, twins
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
    overhead = measure_overhead(load_config(study_tree["base"], RunConfig), read_world(), rounds=3)
    torch.set_num_threads(threads)
    assert all(overhead.step_ms[name] > 0 and overhead.memory_mib[name] > 1 for name in (STANDARD, DYDIFF))
    assert overhead.ratio_20_80[0] <= overhead.ratio <= overhead.ratio_20_80[1]
