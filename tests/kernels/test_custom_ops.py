"""The network's ops under torch.compile: one graph, the gradients of the kernels, no word of the reference."""

import pytest
import torch
from kernel_cases import random_tensor

from dydiff_kernels import attention_inputs, backends, gated_residual, modulated_norm

pytestmark = pytest.mark.skipif(backends.cpp_module() is None, reason="the C++ extension is not built")
X, BRANCH = random_tensor((2, 3, 4, 16)), random_tensor((2, 3, 4, 16), seed=1)
FRAMES_LAST = BRANCH.transpose(1, 2).contiguous()
SHIFT, SCALE, GATE = random_tensor((2, 3, 1, 48), seed=2).chunk(3, -1)
QKV, WEIGHTS = random_tensor((2, 5, 48)), [random_tensor((8,), seed=seed) for seed in (3, 4)]
ANGLES = [random_tensor((5, 4), seed=seed) for seed in (5, 6)]


def attend(norm):
    def run(qkv, *weights):
        weights = weights or (None, None)
        return torch.stack(attention_inputs(qkv, *weights, *ANGLES, num_heads=2, norm=norm))

    return run


CASES = {
    "modulated_norm": (modulated_norm, [X, SHIFT, SCALE]),
    "modulated_norm, frames last": (lambda *t: modulated_norm(*t, frames_last=True), [X, SHIFT, SCALE]),
    "gated_residual": (gated_residual, [X, GATE, BRANCH]),
    "gated_residual, strided": (lambda x, g, b: gated_residual(x, g, b.transpose(1, 2)), [X, GATE, FRAMES_LAST]),
    "attention_inputs, layer": (attend("layer"), [QKV, *WEIGHTS]),
    "attention_inputs, rms": (attend("rms"), [QKV, *WEIGHTS]),
    "attention_inputs, none": (attend("none"), [QKV]),
}


def with_gradients(op, tensors):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = op(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, random_tensor(out.shape, seed=9))


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_op_is_one_graph_and_bit_for_bit_the_kernel(case):
    op, tensors = CASES[case]
    torch.compiler.reset()
    seen = []

    def keep(graph, _):
        seen.append(graph)
        return graph

    torch.compile(op, fullgraph=True, backend=keep)(*tensors)
    called = [str(node.target) for graph in seen for node in graph.graph.nodes if node.op == "call_function"]
    assert [name for name in called if name.startswith("dydiff.")] == [f"dydiff.{case.partition(',')[0]}.default"]
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for ours, kernel in zip(with_gradients(compiled, tensors), with_gradients(op, tensors), strict=True):
        assert torch.equal(ours, kernel)


def test_custom_ops_keep_what_they_promise():
    """Shapes and strides of the fake results, no hidden aliases, gradients that are registered."""
    leaves = [t.detach().clone().requires_grad_() for t in (X, SHIFT, SCALE, GATE, BRANCH, QKV, *WEIGHTS)]
    x, shift, scale, gate, branch, qkv, *weights = leaves
    ops = torch.ops.dydiff
    for frames_last in (False, True):
        torch.library.opcheck(ops.modulated_norm.default, (x, shift, scale, 1e-6, frames_last, "auto"))
    torch.library.opcheck(ops.gated_residual.default, (x, gate, branch, "auto"))
    torch.library.opcheck(ops.attention_inputs.default, (qkv, *weights, *ANGLES, 2, "layer", 1e-6, "auto"))
    torch.library.opcheck(ops.attention_inputs.default, (qkv, None, None, *ANGLES, 2, "none", 1e-6, "auto"))


def test_what_no_kernel_takes_is_traced_through():
    """float64, mixed dtypes, and a machine without the extension: torch's operations, which the compiler fuses."""
    torch.compiler.reset()
    compiled = torch.compile(modulated_norm, fullgraph=True, backend="aot_eager")
    for tensors in ((X.double(), SHIFT.double(), SCALE.double()), (X, SHIFT.half(), SCALE.half())):
        torch.testing.assert_close(compiled(*tensors), modulated_norm(*tensors, backend="reference"))
    doubles = [weight.double() for weight in WEIGHTS]
    compiled, eager = torch.compile(attend("rms"), fullgraph=True, backend="aot_eager"), attend("rms")
    torch.testing.assert_close(compiled(QKV, *doubles), eager(QKV, *doubles))


def test_a_backend_by_name_that_cannot_run_is_an_error_when_compiled_too():
    torch.compiler.reset()
    with pytest.raises(ValueError, match="backend='triton' cannot run here"):
        torch.compile(lambda *t: gated_residual(*t, backend="triton"), backend="aot_eager")(X, GATE, BRANCH)
