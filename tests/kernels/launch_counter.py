"""How many kernels a call would launch on a GPU, counted on any machine: Triton's and those of torch's operations.

    with count_launches() as launches:
        add_noise(x, levels, counter)
    assert launches.triton == ["_add_noise_kernel"] and launches.torch == []

Without a GPU the call runs its Triton kernels in the interpreter (TRITON_INTERPRET=1). Tensors of the host can not be
told from those of the device there, so all that torch calculates counts. Views and allocations launch nothing. One
operation of torch may launch several kernels (a layer norm in its backward pass does): ``torch`` is a lower bound. Of
a custom op the Triton kernels are seen.

Tests that count override the fixture ``poisoned_memory``, which fills memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from torch.utils._python_dispatch import TorchDispatchMode

_LAUNCH_NOTHING = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "_unsafe_view", "lift_fresh", "set_")
_LAUNCH_NOTHING += ("promote_types",)


@dataclass
class Launches:
    """Names of what was launched, in order."""

    triton: list[str] = field(default_factory=list)
    torch: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.triton) + len(self.torch)


class _Counter(TorchDispatchMode):
    def __init__(self, launches: Launches):
        super().__init__()
        self.launches, self.in_kernel = launches, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        name = func._schema.name.partition("::")[2]
        if not (self.in_kernel or views or name in _LAUNCH_NOTHING or func.namespace == "dydiff"):
            self.launches.torch.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def count_launches() -> Iterator[Launches]:
    """Counts what is launched within, forward and backward, but not what the interpreter does to run a kernel."""
    from triton.runtime.jit import KernelInterface

    launches = Launches()
    counter, launcher_of = _Counter(launches), KernelInterface.__getitem__

    def counting(kernel, grid):
        def launch(*args, **kwargs):
            launches.triton.append(kernel.fn.__name__)
            counter.in_kernel = True
            try:
                return launcher_of(kernel, grid)(*args, **kwargs)
            finally:
                counter.in_kernel = False

        return launch

    with patch.object(KernelInterface, "__getitem__", counting), counter:
        yield launches
