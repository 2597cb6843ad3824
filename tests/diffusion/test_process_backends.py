"""Every backend gives the method's result: the fused kernels against the torch code, both against float64."""

import pytest
import torch

from dydiff_dist.diffusion import DynamicalDiffusion, sample, timestep_grid
from dydiff_kernels import NoiseCounter, Stream, available_backends

SHAPE = (4, 7, 2, 3, 5)
T = torch.tensor([1, 300, 700, 960])
# Storage is rounded once at the end (values reach about 10); float32 rounding is enlarged by at most 2.4 / √ᾱ = 40.
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


@pytest.fixture(params=available_backends("cpu"))
def backend(request):
    return request.param


def draw(dtype, seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def counter(step=0):
    return NoiseCounter(seed=9, sample_index=torch.tensor([3, 1, 2**40, 0]), step=step, stream=Stream.DIFFUSION)


def process(backend, **options):
    return DynamicalDiffusion(backend=backend, gamma_ratio=0.5, **options)


def assert_agree(result, exact, dtype):
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_add_noise(backend, prediction, dependent, dtype):
    d = process(backend, prediction=prediction, dependent_noise=dependent)
    x = draw(dtype, 0)
    for noise, exact_noise in ((draw(dtype, 1), draw(dtype, 1).double()), (counter(), counter())):
        exact = d.add_noise(x.double(), T, exact_noise)
        for ours, theirs in zip(d.add_noise(x, T, noise), exact, strict=True):
            assert_agree(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("clamped", [True, False])
def test_step(backend, prediction, dependent, dtype, clamped):
    d = process(backend, prediction=prediction, dependent_noise=dependent)
    z, output, history = draw(dtype, 0), draw(dtype, 1), draw(dtype, 2)[:, :2] if clamped else None
    before = torch.tensor([-1, 280, 0, 940])
    exact_history = history.double() if clamped else None
    for eta, noise in ((0.0, None), (0.7, counter())):
        ours = d.step(z, T, before, output, eta=eta, noise=noise, history=history)
        exact = d.step(z.double(), T, before, output.double(), eta=eta, noise=noise, history=exact_history)
        for result, expected in zip(ours, exact, strict=True):
            assert_agree(result, expected, dtype)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpmpp_2m"])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_sample(backend, sampler, prediction):
    """A whole run with a smooth stand-in for a network; rounding errors don't add up beyond a single step's."""
    d = process(backend, prediction=prediction)
    start = draw(torch.float32, 3)

    def run(start):
        noise = counter() if sampler == "ancestral" else None
        grid = timestep_grid(1000, 12)
        return sample(d, lambda z, t: (0.3 * z).sin(), start=start, timesteps=grid, sampler=sampler, noise=noise)

    torch.testing.assert_close(run(start).double(), run(start.double()), rtol=0, atol=5e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpmpp_2m"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_sampling_in_reused_memory_changes_no_bit(backend, sampler, dtype):
    """Without a callback every step overwrites z and x̂ of the step before; the start and what is given stay whole."""
    d = process(backend, prediction="v")
    start, history = draw(dtype, 3), draw(dtype, 4)[:, :2]
    given = start.clone(), history.clone()
    seen = []

    def run(callback):
        noise = counter() if sampler == "ancestral" else None
        options = {"noise": noise, "history": history, "callback": callback, "sampler": sampler}
        grid = timestep_grid(1000, 6)
        return sample(d, lambda z, t: (0.3 * z).sin(), start=start, timesteps=grid, **options)

    kept = run(lambda step: seen.append((step.z, step.z.clone(), step.x0_hat, step.x0_hat.clone())))
    assert torch.equal(run(None), kept)
    assert torch.equal(start, given[0]) and torch.equal(history, given[1])
    assert all(torch.equal(z, copy) and torch.equal(x0, x0_copy) for z, copy, x0, x0_copy in seen)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_noising_into_spent_memory_changes_no_bit(backend, prediction):
    d = process(backend, prediction=prediction)
    x, other = draw(torch.float32, 0), draw(torch.float32, 1)
    fresh = d.add_noise(x, T, counter())
    spent = d.add_noise(other, T, counter(1))
    again = d.add_noise(x, T, counter(), spent=spent)
    assert all(torch.equal(one, two) for one, two in zip(again, fresh, strict=True))
    assert torch.equal(other, draw(torch.float32, 1)), "an x0 target is the data themselves, never room for results"
    if backend != "reference":
        assert again[0].data_ptr() == spent[0].data_ptr()
    smaller = d.add_noise(x[:2], T[:2], NoiseCounter(9, counter().sample_index[:2], 0), spent=spent)
    assert smaller[0].shape == x[:2].shape


@pytest.mark.parametrize("loss_space", ["target", "unmixed"])
@pytest.mark.parametrize("min_snr", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_its_gradient(backend, loss_space, min_snr, dtype):
    d = process(backend, prediction="v", loss_space=loss_space, min_snr=min_snr, loss_frames="future")
    output, target = draw(dtype, 0), draw(dtype, 1)

    def loss_and_gradient(output, target):
        output = output.clone().requires_grad_()
        loss, per_sample = d.loss(output, target, T, num_history_frames=2)
        loss.backward()
        return per_sample.detach(), output.grad

    per_sample, gradient = loss_and_gradient(output, target)
    exact_loss, exact_gradient = loss_and_gradient(output.double(), target.double())
    assert per_sample.dtype == torch.float32
    torch.testing.assert_close(per_sample.double(), exact_loss, rtol=1e-5, atol=0)
    scale = exact_gradient.abs().max().item()
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=torch.finfo(dtype).eps, atol=1e-5 * scale)


def test_steps_are_differentiable_where_a_gradient_is_wanted(backend):
    """The fused step has no gradient, so the torch code runs; with no gradient asked for, the two agree."""
    d = process(backend, prediction="v")
    z, output = draw(torch.float32, 0), draw(torch.float32, 1)
    with_gradient, _ = d.step(z, T, T - 1, output.clone().requires_grad_())
    assert with_gradient.requires_grad
    torch.testing.assert_close(with_gradient.detach(), d.step(z, T, T - 1, output)[0], rtol=0, atol=5e-5)


def test_backend_by_name_that_cannot_run_says_so():
    if "triton" in available_backends("cpu"):
        pytest.skip("the Triton interpreter is on")
    with pytest.raises(ValueError, match="triton"):
        process("triton").add_noise(draw(torch.float32, 0), T, counter())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("timesteps", [T, T[:, None].expand(4, SHAPE[1])])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gpu_gives_what_the_cpu_gives(dtype, timesteps):
    """One timestep per sample (fused) and one per frame (torch code), from noise to loss."""

    def run(device, dtype):
        d = process("auto", prediction="v", min_snr=5.0)
        x, output, t = (
            draw(torch.float32, 0).to(device, dtype),
            draw(torch.float32, 1).to(device, dtype),
            timesteps.to(device),
        )
        z, target = d.add_noise(x, t, counter())
        z_prev, x0_hat = d.step(z, t, t - 1, output, eta=0.5, noise=counter(1), history=x[:, :2])
        loss, _ = d.loss(output, target, t)
        grid = timestep_grid(1000, 6)
        frames = sample(d, lambda z, t: (0.3 * z).sin(), start=x, timesteps=grid, sampler="dpmpp_2m")
        return [result.double().cpu() for result in (z, target, z_prev, x0_hat, loss, frames)]

    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 8e-2}[dtype]
    for on_gpu, on_cpu in zip(run("cuda", dtype), run("cpu", dtype), strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=2 * torch.finfo(dtype).eps, atol=tolerance)
