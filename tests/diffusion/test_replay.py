"""Sampling can be recorded: it does the same whatever its tensors hold, and a recording says what the run says."""

import pytest
import torch
from recordings import Recorder
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dydiff_dist.diffusion import build_process, sample, timestep_grid
from dydiff_dist.diffusion.replay import Replay
from dydiff_dist.models import InputSizes
from dydiff_dist.models.transformer import VideoTransformerConfig
from dydiff_kernels import NoiseCounter, Stream, normal

SHAPE, NUM_HISTORY = (2, 5, 1, 8, 8), 2


LIKE_ERRORS = {"process": "standard", "noise_like_errors_of": "persistence", "num_history_frames": NUM_HISTORY}
LIKE_ERRORS |= {"frame_autocovariance": [1.0, 0.9, 0.7, 0.6, 0.5]}


def build_run(sampler: str, device: str = "cpu", backend: str = "reference", **options):
    """A sampling run with a small network, a function of tensors."""
    sizes = InputSizes(num_frames=5, num_history_frames=NUM_HISTORY, num_channels=1, height=8, width=8)
    torch.manual_seed(0)
    network = VideoTransformerConfig(width=16, depth=1, num_heads=2, patch_size=4).build(sizes, kernels=backend)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    network.to(device).requires_grad_(False)
    process = build_process(prediction="v", backend=backend, **options)
    grid = timestep_grid(process.table, 4)

    def run(start, history, sample_index, noise_words, actions=None):
        def denoise(z, timesteps):
            return network(z, timesteps, history=history)

        noise = NoiseCounter(noise_words[0], sample_index, noise_words[1], Stream.SAMPLER_ETA)
        return sample(process, denoise, start=start, timesteps=grid, sampler=sampler, noise=noise, history=history)

    return run


def tensors(seed: int, device: str = "cpu", shape=SHAPE):
    """Of a window: where it starts, its history, and the name of its noise."""
    generator = torch.Generator().manual_seed(seed)
    start, history = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    noise = NoiseCounter(2**63 + seed, torch.arange(shape[0], device=device) + 7 * seed, 4 * seed)
    named = dict(sample_index=noise.sample_index, noise_words=noise.words())
    return dict(start=start, history=history[:, :NUM_HISTORY], **named)


class Watch(TorchDispatchMode):
    """Follows what comes of some tensors, which stand for a GPU's: refuses a look at a value of theirs, for which the
    host would wait, and notes what is done with them."""

    def __init__(self, watched):
        super().__init__()
        self.tensors, self.done = list(watched), []  # held, so that no storage's address comes twice
        self.storages = {tensor.untyped_storage()._cdata for tensor in self.tensors}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        if any(t.untyped_storage()._cdata in self.storages for t in given):
            name = func.name()
            assert not any(part in name for part in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")), name
            self.done.append(name)
            self.tensors += [t for t in tree_iter(out) if isinstance(t, torch.Tensor)]
            self.storages = {tensor.untyped_storage()._cdata for tensor in self.tensors}
        return out


@pytest.mark.parametrize("options", [{}, LIKE_ERRORS])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "ancestral"])
def test_a_sampling_run_looks_at_no_value(sampler, options):
    """And does the same whatever its tensors hold, as a recording has to."""
    run, done = build_run(sampler, **options), []
    for seed in range(2):
        given = tensors(seed)
        with Watch(given.values()) as watch:
            run(**given)
        done.append(watch.done)
    assert done[0] == done[1] and len(done[0]) > 50


def test_a_look_at_a_value_is_seen():
    x = torch.zeros(2)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Watch([x]):
        float((x + 1).sum())


def test_what_the_host_reads_or_draws_stays_as_it_was_recorded():
    """The recorder here is as strict as CUDA's; names of noise that are numbers would be baked in."""

    def noisy(x):
        return x + normal(NoiseCounter(int(x[0]), torch.zeros(1, dtype=torch.int64), 0), (1, 2), backend="reference")

    for baked in (lambda x: x * float(x[0]), noisy):
        replay = Replay(baked, Recorder())
        for _ in range(2):
            assert torch.equal(replay(x=torch.full((2,), 2.0)), baked(torch.full((2,), 2.0)))
        assert not torch.equal(replay(x=torch.full((2,), 3.0)), baked(torch.full((2,), 3.0)))


@pytest.mark.parametrize(("sampler", "options"), [("ddim", {}), ("ancestral", {}), ("ancestral", LIKE_ERRORS)])
def test_what_comes_again_is_recorded_once(sampler, options):
    """Under ancestral sampling every window draws noise of its own, in every step."""
    run, recorder = build_run(sampler, **options), Recorder()
    replay = Replay(run, recorder)
    for seed in range(4):
        assert torch.equal(replay(**tensors(seed), actions=None), run(**tensors(seed)))
    assert (recorder.recorded, recorder.played) == (1, 3)
    other = (3, *SHAPE[1:])
    for seed in range(2):
        assert torch.equal(replay(**tensors(seed, shape=other)), run(**tensors(seed, shape=other)))
    assert (recorder.recorded, recorder.played) == (2, 4)


def test_results_are_the_callers_own():
    replay = Replay(lambda x: x + 1, Recorder())
    results = [replay(x=torch.full((2,), float(n))) for n in range(4)]
    assert [int(result[0]) for result in results] == [1, 2, 3, 4]


def test_what_can_not_be_recorded_runs_by_itself(caplog):
    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    replay = Replay(lambda x: x + 1, refuse)
    with caplog.at_level("WARNING"):
        assert [int(replay(x=torch.zeros(1))) for _ in range(4)] == [1] * 4
    assert caplog.text.count("could not be recorded") == 1 and "stream is capturing" in caplog.text


def test_without_a_gpu_nothing_is_recorded():
    calls = []
    replay = Replay(lambda x: calls.append(1) or x)
    for _ in range(3):
        replay(x=torch.zeros(1))
    assert len(calls) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, LIKE_ERRORS])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "ancestral"])
def test_a_cuda_graph_gives_what_the_run_gives(sampler, options):
    run = build_run(sampler, "cuda", "auto", **options)
    replay = Replay(run)
    for seed in range(4):
        assert torch.equal(replay(**tensors(seed, "cuda")), run(**tensors(seed, "cuda")))
