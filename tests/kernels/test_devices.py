"""Every op on the device's own backend, against the float64 truth on the CPU: fresh inputs, poisoned results.

On a machine with a CUDA device this is the first test of the Triton kernels outside their interpreter; ragged and large
shapes, all storage types, both kinds of noise. Without one the same checks run on the CPU, and so are known to work.
"""

from functools import partial

import pytest
import torch
from kernel_cases import (
    DTYPES,
    OPERATORS,
    counter,
    levels,
    operator_gammas,
    random_levels,
    random_operator,
    random_tensor,
)

from dydiff_kernels import (
    LatentPosterior,
    Levels,
    StepCoefficients,
    Stream,
    add_noise,
    attention_inputs,
    available_backends,
    denoising_loss,
    frame_mix,
    frame_unmix,
    gated_residual,
    modulated_norm,
    normal,
    reverse_step,
    short_attention,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Ragged, aligned, one element a frame, one frame, frames longer than a program's block, a small latent video.
SHAPES = [(2, 5, 63), (3, 4, 2, 8, 8), (1, 7, 1), (2, 1, 123), (2, 3, 2, 1100), (4, 12, 4, 32, 32)]
# Results of order 10 are rounded once to storage; float32 arithmetic and normals (1e-6) are amplified by at most 20.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-4, torch.float16: 2**-7}

pytestmark = [
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch.")),
    pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape))),
]


@pytest.fixture(autouse=True)
def own_backend(device):
    """The device's kernels must be there; a silent reference would prove nothing."""
    if available_backends(device)[0] == "reference":
        pytest.skip(f"no kernels on {device}")


def assert_agree(results, truths, dtype, roundings=1):
    """Equal up to ``TOLERANCE`` for each rounding to storage, which grows with the largest value beyond 10."""
    scale = roundings * max(1.0, *(truth.abs().max().item() / 10 for truth in truths))
    for result, truth in zip(results, truths, strict=True):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double().cpu(), truth, rtol=0, atol=scale * TOLERANCE[dtype])


def test_mixing_and_its_gradient(device, dtype, shape):
    x, upstream, gamma_bar = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1), levels(shape[0])
    for op in (frame_mix, frame_unmix):

        def run(x, upstream, gamma_bar, op=op):
            leaf = x.clone().requires_grad_()
            out = op(leaf, gamma_bar)
            out.backward(upstream)
            return out.detach(), leaf.grad

        truth = run(x.double(), upstream.double(), gamma_bar)
        assert_agree(run(x.to(device), upstream.to(device), gamma_bar.to(device)), truth, dtype)


def test_noise(device, dtype, shape):
    named = counter(shape[0])
    truth = normal(named, shape, device="cpu", dtype=torch.float64)
    assert_agree([normal(named, shape, device=device, dtype=dtype)], [truth], dtype)


@pytest.mark.parametrize("operators", OPERATORS)
@pytest.mark.parametrize("mixes_target", [True, False], ids=["mixed", "unmixed"])
def test_noising(device, dtype, shape, mixes_target, operators):
    mean, logvar = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1)
    k, named = random_levels(shape[0], operators), counter(shape[0])

    def run(mean, logvar, device):
        posterior = LatentPosterior(mean, logvar, counter(shape[0], stream=Stream.LATENT_POSTERIOR), 0.5)
        level = Levels(*(column.to(device) for column in k))
        plain = add_noise(mean, level, named.to(device), mixes_target=mixes_target)
        sampled = add_noise(posterior, level, named.to(device), mixes_target=mixes_target, with_x0=True)
        return plain.z, plain.target, *sampled

    assert_agree(run(mean.to(device), logvar.to(device), device), run(mean.double(), logvar.double(), "cpu"), dtype)


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "given"])
def test_an_operator_on_the_noise(device, dtype, shape, drawn):
    """In noising, and in a step that adds noise."""
    x, given, L = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1), random_operator(shape[1])
    k, named = random_levels(shape[0], "different"), counter(shape[0])
    names = ("frame_gamma", "next_frame_gamma", "noise_gamma", "next_noise_gamma")
    columns = {name: levels(shape[0], low=0.2, seed=seed) for seed, name in enumerate(names)}
    names = ("from_z", "from_output", "signal", "clean", "kept_noise", "sigma")
    columns |= {name: 0.3 + levels(shape[0], seed=seed) for seed, name in enumerate(names, 4)}

    def run(x, given, L, device):
        noise = named.to(device) if drawn else given
        noised = add_noise(x, Levels(*(column.to(device) for column in k)), noise, noise_operator=L)
        step = StepCoefficients(**{name: column.to(device) for name, column in columns.items()})
        return noised.z, noised.target, reverse_step(x, given, step, noise=noise, noise_operator=L).z

    truth = run(x.double(), given.double(), L.double(), "cpu")
    assert_agree(run(x.to(device), given.to(device), L.to(device), device), truth, dtype)


def test_loss_and_gradient(device, dtype, shape):
    output, target = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1)
    weights = torch.linspace(0.0, 2.0, shape[1]) if shape[1] > 1 else torch.ones(1)

    def run(output, target):
        leaf = output.clone().requires_grad_()
        loss = denoising_loss(leaf, target, frame_weights=weights)
        loss.sum().backward()
        return loss.detach(), leaf.grad * output[0].numel()

    (loss, grad), (exact, exact_grad) = run(output.to(device), target.to(device)), run(output.double(), target.double())
    assert_agree([grad], [exact_grad], dtype)
    torch.testing.assert_close(loss.double().cpu(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("operators", OPERATORS)
@pytest.mark.parametrize("mixes_output", [True, False], ids=["mixed", "unmixed"])
def test_reverse_step(device, dtype, shape, mixes_output, operators):
    z, output, before = (random_tensor(shape, dtype, seed=seed) for seed in range(3))
    batch, num_history = shape[0], max(1, shape[1] // 2)
    frame_gamma, noise_gamma = operator_gammas(operators, batch, low=0.2)
    next_frame_gamma, next_noise_gamma = operator_gammas(operators, batch, low=0.2, seed=3)
    if operators == "shared":
        noise_gamma = next_noise_gamma = None
    a, b, c, k, f, g = (0.3 + levels(batch, seed=seed) for seed in range(4, 10))
    columns = dict(
        frame_gamma=frame_gamma,
        next_frame_gamma=next_frame_gamma,
        noise_gamma=noise_gamma,
        next_noise_gamma=next_noise_gamma,
        from_z=f if mixes_output or operators == "shared" else 0 * f,
        from_output=-g,
        signal=a,
        clean=b,
        previous=c,
        kept_noise=k,
        sigma=torch.full((batch,), 0.3, dtype=torch.float64),
    )

    def run(z, output, before, device):
        step = StepCoefficients(**{name: t if t is None else t.to(device) for name, t in columns.items()})
        options = dict(mixes_output=mixes_output, x0_prev=before, return_x0=True)
        plain = reverse_step(z, output, step, noise=counter(batch).to(device), **options)
        return *plain, *reverse_step(z, output, step, noise=before, history=z[:, :num_history], **options)

    truth = run(z.double(), output.double(), before.double(), "cpu")
    assert_agree(run(z.to(device), output.to(device), before.to(device), device), truth, dtype)


def assert_differentiates(op, tensors, upstream, device, dtype, roundings=1):
    """Results and gradients of an op, each alone: they are rounded to storage once, or so many times in a row."""

    def run(tensors, upstream):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        out = op(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, upstream)

    on_device = run([t.to(device) for t in tensors], upstream.to(device))
    assert_agree(on_device, run([t.double() for t in tensors], upstream.double()), dtype, roundings)


def test_modulation(device, dtype, shape):
    tokens = (shape[0], shape[1], 3, shape[-1] + 2)
    x, branch, upstream = (random_tensor(tokens, dtype, seed=seed) for seed in range(3))
    conditions = random_tensor((shape[0], shape[1], 1, 3 * tokens[-1]), dtype, seed=3)
    shift, scale, gate = conditions.chunk(3, -1)
    for frames_last in (False, True):
        norm = partial(modulated_norm, frames_last=frames_last)
        assert_differentiates(norm, (x, shift, scale), upstream, device, dtype)
    assert_differentiates(gated_residual, (x, gate, branch), upstream, device, dtype)
    strided = branch.transpose(1, 2).contiguous().transpose(1, 2)
    assert_differentiates(
        gated_residual, (x, gate, strided), upstream.transpose(0, 1).contiguous().transpose(0, 1), device, dtype
    )


def inputs_of_attention(B, N, H, E, norm, dtype):
    """The projection, the weights of its norms, and its angles."""
    weights = [] if norm == "none" else [random_tensor((E,), dtype, seed=seed) for seed in (2, 3)]
    angles = [angle(random_tensor((N, E // 2), seed=4)) for angle in (torch.cos, torch.sin)]
    return random_tensor((B, N, 3 * H * E), dtype), weights, angles


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_attention_inputs(device, dtype, shape, norm):
    # a norm over very few channels may divide by next to nothing, and amplifies rounding by what it divides by
    B, N, H, E = shape[0], shape[1] * 3, 2, 2 * shape[-1] + 16
    qkv, weights, angles = inputs_of_attention(B, N, H, E, norm, dtype)
    upstream = random_tensor((3, B, N, H, E), dtype, seed=1)

    def op(qkv, *weights):
        on_device = [angle.to(qkv.device) for angle in angles]
        options = dict(num_heads=H, norm=norm)
        return torch.stack(attention_inputs(qkv, *(weights or (None, None)), *on_device, **options))

    assert_differentiates(op, (qkv, *weights), upstream.transpose(2, 3), device, dtype)


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_short_attention(device, dtype, shape, norm):
    """Queries and keys, probabilities, gradients of scores and results are rounded to storage."""
    B, N, H, E = shape[0], min(shape[1] * 3, 32), 2, min(2 * shape[-1] + 16, 128)
    qkv, weights, angles = inputs_of_attention(B, N, H, E, norm, dtype)

    def op(qkv, *weights):
        on_device = [angle.to(qkv.device) for angle in angles]
        return short_attention(qkv, *(weights or (None, None)), *on_device, num_heads=H, norm=norm)

    upstream = random_tensor((B, N, H * E), dtype, seed=1)
    assert_differentiates(op, (qkv, *weights), upstream, device, dtype, roundings=4)
