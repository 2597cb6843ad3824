"""Counter-based noise: Philox4x32-10, the same numbers on every device, rank count and after every resume.

The layout of key and counter is agreement 2 of docs/agreements.md; the generator is Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3" (SC 2011). ``NoiseCounter`` names noise without holding it, so a kernel can draw it again
instead of storing it.
"""

import torch

from dydiff_kernels import native
from dydiff_kernels.counter import NoiseCounter, Stream, check_counter
from dydiff_kernels.dtypes import LEGAL_DTYPES
from dydiff_kernels.noise import reference
from dydiff_kernels.outputs import new_result
from dydiff_kernels.registry import Operands, register_op

__all__ = ["NoiseCounter", "Stream", "normal", "uniform"]


def normal(
    counter: NoiseCounter,
    shape: torch.Size | tuple[int, ...],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> torch.Tensor:
    """Standard normals (Box–Muller) for each sample of ``counter``.

    Args:
        counter: names the noise; B = ``len(counter.sample_index)``.
        shape: the full shape (B, *sample_shape), as for ``torch.randn``; elements are numbered row-major in a sample.
        device: where the result is made.
        dtype: float32, bfloat16, float16 (rounded from float32) or float64 (not rounded, by the reference).
        backend: ``auto | triton | cpp | reference``; they agree to 1e-6.

    Raises:
        ValueError: ``shape[0]`` is not B, a sample has more than 2³⁴ elements, or ``dtype`` is not floating.

    Examples:
        >>> both = normal(NoiseCounter(seed=7, sample_index=torch.tensor([3, 5]), step=0), (2, 4))
        >>> alone = normal(NoiseCounter(seed=7, sample_index=torch.tensor([5]), step=0), (1, 4))
        >>> torch.equal(both[1:], alone)  # a sample's noise is its own, whatever else is drawn
        True
    """
    check_counter("normal", counter, shape)
    if dtype not in LEGAL_DTYPES:
        raise ValueError(f"normal: dtype is {dtype}; expected float32, bfloat16, float16 or float64")
    counter = counter.to(device)
    return _NORMAL.select(backend, [counter.sample_index], dtype)(counter, shape, dtype)


def _normal_cpp(counter: NoiseCounter, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    out = new_result(shape, dtype)
    samples = out.view(shape[0], 1, torch.Size(shape[1:]).numel())
    native.run("normal", Operands(samples, dict(out=samples), dict(noise=counter)))
    return out


_NORMAL = register_op(
    "normal",
    reference=reference.normal_reference,
    cpp=_normal_cpp,
    triton="dydiff_kernels.noise.triton_kernel:normal",
    aot_cases="dydiff_kernels.noise.triton_kernel:AOT_CASES",
)


def uniform(counter: NoiseCounter, num: int, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Uniform float32 numbers (B, num) in the half-open interval (0, 1].

    They are (x + ½)·2⁻³² rounded to float32, so 1.0 does occur (probability 2⁻²⁵): ``floor(u · n)`` needs a clamp
    to n - 1. For a few numbers per sample; always by the reference, which is exact on every device.

    Raises:
        ValueError: ``num`` is negative or above 2³⁴.
    """
    if not isinstance(num, int) or num < 0:
        raise ValueError(f"uniform: num is {num!r}; expected an integer >= 0")
    check_counter("uniform", counter, (counter.sample_index.numel(), num))
    return reference.uniform_reference(counter.to(device), num)
