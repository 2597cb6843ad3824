"""Every backend gives the method's result: the fused kernels against the torch code, both against float64."""

import pytest
import torch
from process_rows import ddim_step, make_step, process_of

from dydiff_dist.diffusion import Workspace, sample, timestep_grid
from dydiff_dist.diffusion.samplers import SAMPLERS
from dydiff_kernels import LatentPosterior, NoiseCounter, Stream, available_backends

SHAPE = (4, 7, 2, 3, 5)
T = torch.tensor([1, 300, 700, 960])
# Storage is rounded once at the end (values reach about 10); float32 rounding is enlarged by at most 2.4 / √ᾱ = 40.
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
CASES = [
    *((row, prediction) for row in ("dydiff", "dydiff_independent") for prediction in ("eps", "v", "x0")),
    ("standard", "eps"),
    ("correlated_noise", "v"),
    ("correlated_noise", "x0"),
    ("correlated_noise_constant", "eps"),
    ("flow_matching_none", "velocity"),
    ("flow_matching_both", "x0"),
    ("flow_matching_noise", "velocity"),
    ("edm_none", "edm"),
    ("edm_frames", "edm"),
]


@pytest.fixture(params=available_backends("cpu"))
def backend(request):
    return request.param


def draw(dtype, seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def counter(step=0):
    return NoiseCounter(seed=9, sample_index=torch.tensor([3, 1, 2**40, 0]), step=step, stream=Stream.DIFFUSION)


def process(backend, row="dydiff", prediction="v", **options):
    return process_of(row, prediction, backend=backend, sigma_max=5.0, **options)


def assert_agree(result, exact, dtype):
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("row", "prediction"), CASES)
def test_add_noise(backend, row, prediction, dtype):
    d = process(backend, row, prediction)
    x = draw(dtype, 0)
    for noise, exact_noise in ((draw(dtype, 1), draw(dtype, 1).double()), (counter(), counter())):
        exact = d.add_noise(x.double(), T, exact_noise)
        for ours, theirs in zip(d.add_noise(x, T, noise), exact, strict=True):
            assert_agree(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("row", "prediction"), CASES)
@pytest.mark.parametrize("clamped", [True, False])
def test_step(backend, row, prediction, dtype, clamped):
    d = process(backend, row, prediction)
    z, output, history = draw(dtype, 0), draw(dtype, 1), draw(dtype, 2)[:, :2] if clamped else None
    exact_history = history.double() if clamped else None
    for timestep, after in ((1, -1), (300, 280), (700, 0), (960, 940)):
        for eta, noise in ((0.0, None), (0.7, counter())):
            step = ddim_step(d, timestep, after, eta)
            ours = make_step(d, z, output, step, noise=noise, history=history)
            exact = make_step(d, z.double(), output.double(), step, noise=noise, history=exact_history)
            for result, expected in zip(ours, exact, strict=True):
                assert_agree(result, expected, dtype)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("row", "prediction"), [*CASES[1:3], ("standard", "v"), *CASES[6:]])
def test_sample(backend, sampler, row, prediction):
    """A whole run with a smooth stand-in for a network; rounding errors don't add up beyond a single step's."""
    if prediction == "eps":
        prediction = "v"  # whose estimates a stand-in doesn't blow up
    d = process(backend, row, prediction)
    if sampler in ("dpmpp_2m", "heun") and not d.table.is_whitened_standard:
        pytest.skip("refused")
    start = draw(torch.float32, 3)

    def run(start):
        noise = counter() if sampler == "ancestral" else None
        grid = timestep_grid(d.table, 12)
        return sample(d, lambda z, t: (0.3 * z).sin(), start=start, timesteps=grid, sampler=sampler, noise=noise)

    torch.testing.assert_close(run(start).double(), run(start.double()), rtol=0, atol=5e-5)


class NewMemory(Workspace):
    """Gives nothing back: every result is new memory."""

    def take(self, name, like):
        return None


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("row", ["dydiff", "correlated_noise_constant"])
def test_sampling_in_reused_memory_changes_no_bit(monkeypatch, backend, sampler, dtype, row):
    """Every step overwrites z and x̂ of the step before; the start and what is given stay whole, and so does a network
    output that is z's own memory."""
    d = process(backend, row)
    start, history = draw(dtype, 3), draw(dtype, 4)[:, :2]
    given = start.clone(), history.clone()

    def run(denoise):
        noise = counter() if sampler == "ancestral" else None
        options = {"noise": noise, "history": history, "sampler": sampler}
        return sample(d, denoise, start=start, timesteps=timestep_grid(d.table, 6), **options)

    reused = [run(denoise) for denoise in (lambda z, t: (0.3 * z).sin(), lambda z, t: z)]
    assert torch.equal(start, given[0]) and torch.equal(history, given[1])
    monkeypatch.setattr("dydiff_dist.diffusion.sampling.Workspace", NewMemory)
    kept = [run(denoise) for denoise in (lambda z, t: (0.3 * z).sin(), lambda z, t: z.clone())]
    assert all(torch.equal(one, two) for one, two in zip(reused, kept, strict=True))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("row", ["dydiff", "correlated_noise"])
@pytest.mark.parametrize("drawn", [True, False])
def test_noising_into_used_memory_changes_no_bit(backend, row, prediction, drawn):
    """``drawn``: x itself is drawn from a posterior, into used memory as well."""
    d = process(backend, row, prediction)
    x, other = draw(torch.float32, 0), draw(torch.float32, 1)

    def latents(x):
        return LatentPosterior(x, -torch.ones_like(x), counter(5)) if drawn else x

    fresh = d.add_noise(latents(x), T, counter())
    workspace = Workspace()
    used = d.add_noise(latents(other), T, counter(1), workspace=workspace)
    pointers = [result.data_ptr() for result in used]
    again = d.add_noise(latents(x), T, counter(), workspace=workspace)
    assert all(torch.equal(one, two) for one, two in zip(again, fresh, strict=True))
    assert torch.equal(other, draw(torch.float32, 1)), "an x0 target is the data themselves, never memory for results"
    assert torch.equal(x, draw(torch.float32, 0))
    written = [True, drawn or prediction != "x0", drawn]
    for result, pointer, is_written in zip(again, pointers, written, strict=True):
        assert (result.data_ptr() == pointer) == is_written
    assert (again.x0 is x) != drawn


@pytest.mark.parametrize("drawn", [True, False])
def test_memory_that_does_not_fit_is_made_new(backend, drawn):
    d = process(backend)
    x, workspace = draw(torch.float32, 0), Workspace()

    def noised(part, dtype, workspace):
        few = x[part].to(dtype)
        named = NoiseCounter(9, counter().sample_index[part], 0)
        latents = LatentPosterior(few, -torch.ones_like(few), named) if drawn else few
        return d.add_noise(latents, T[part], named, workspace=workspace)

    for part, dtype in ((slice(4), torch.float32), (slice(2), torch.float32), (slice(2), torch.bfloat16)):
        for ours, fresh in zip(noised(part, dtype, workspace), noised(part, dtype, None), strict=True):
            assert ours.shape == x[part].shape and ours.dtype == dtype
            assert torch.equal(ours, fresh)


@pytest.mark.parametrize("loss_space", ["target", "unmixed"])
@pytest.mark.parametrize("min_snr", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_its_gradient(backend, loss_space, min_snr, dtype):
    d = process(backend, loss_space=loss_space, min_snr=min_snr, loss_frames="future")
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
    d = process("reference" if backend == "reference" else "auto")
    z, output, step = draw(torch.float32, 0), draw(torch.float32, 1), ddim_step(d, 700, 699)
    with_gradient, _ = make_step(d, z, output.clone().requires_grad_(), step)
    assert with_gradient.requires_grad
    torch.testing.assert_close(with_gradient.detach(), make_step(d, z, output, step)[0], rtol=0, atol=5e-5)


def test_backend_by_name_that_cannot_run_says_so():
    if "triton" in available_backends("cpu"):
        pytest.skip("the Triton interpreter is on")
    with pytest.raises(ValueError, match="triton"):
        process("triton").add_noise(draw(torch.float32, 0), T, counter())


@pytest.mark.gpu
@pytest.mark.parametrize(("row", "prediction"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gpu_gives_what_the_cpu_gives(dtype, row, prediction):
    """From noise to loss."""

    def run(device, dtype):
        d = process("auto", row, prediction, min_snr=5.0)
        x, output, t = (
            draw(torch.float32, 0).to(device, dtype),
            draw(torch.float32, 1).to(device, dtype),
            T.to(device),
        )
        z, target, _ = d.add_noise(x, t, counter())
        step = ddim_step(d, 700, 699, eta=0.5)
        z_next, x0_hat = make_step(d, z, output, step, noise=counter(1), history=x[:, :2])
        loss, _ = d.loss(output, target, t)
        sampler = "dpmpp_2m" if d.table.is_whitened_standard else "ddim"
        v = process("auto", row, "v")
        frames = sample(v, lambda z, t: (0.3 * z).sin(), start=x, timesteps=timestep_grid(v.table, 6), sampler=sampler)
        return [result.double().cpu() for result in (z, target, z_next, x0_hat, loss, frames)]

    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 8e-2}[dtype]
    for on_gpu, on_cpu in zip(run("cuda", dtype), run("cpu", dtype), strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=2 * torch.finfo(dtype).eps, atol=tolerance)
