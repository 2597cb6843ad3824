"""The estimate of a run as text, and as a dictionary for programs."""

from typing import Any

from dydiff_dist.planning.estimate import RunEstimate
from dydiff_dist.planning.kernel_time import by_kind, by_operation
from dydiff_dist.planning.memory import MemoryEstimate

_GIB = 2**30
_PARTS = ("weights", "gradients", "optimizer", "EMA", "activations", "buffers")


def as_dict(estimate: RunEstimate, price: float | None) -> dict[str, Any]:
    """All numbers as JSON types, in the units of their names; ``price`` is that of a GPU-hour, None for no cost."""
    step, cluster, memory = estimate.step, estimate.cluster, estimate.memory()
    gpu_hours = estimate.hours * cluster.num_gpus
    return {
        "gpu": cluster.gpu.name,
        "gpus": cluster.num_gpus,
        "parameters": estimate.num_params,
        **estimate.footprint.facts(),
        "memory_bytes": {**memory.parts, "peak": memory.peak, "phase": memory.phase, "host": memory.host_parts},
        "largest_micro_batch": estimate.largest_micro_batch,
        "step_sec": step.total_sec,
        "step_parts_sec": {
            "network": dict(step.network_sec),
            "communication_waited_for": step.exposed_sec,
            "update": dict(step.update_sec),
        },
        "launches": len(estimate.launches),
        "communication_sec": step.communication_sec,
        "sent_bytes_per_gpu_and_step": step.sent_bytes,
        "mfu": step.mfu,
        "samples_per_sec": estimate.config.training.global_batch_size / step.total_sec,
        "hours": estimate.hours,
        "gpu_hours": gpu_hours,
        "cost": None if price is None else gpu_hours * price,
        "assumptions": estimate.assumptions.model_dump(),
    }


def as_text(estimate: RunEstimate, price: float | None) -> str:
    """A page for a person: the run, memory as its state may be divided, time and cost, what all of it rests on.

    ``price`` as in `as_dict`.
    """
    parts = (_run_lines(estimate), _memory_table(estimate), _kernel_table(estimate), _time_lines(estimate, price))
    return "\n\n".join((*parts, _basis(estimate)))


def _run_lines(estimate: RunEstimate) -> str:
    config, cluster, footprint = estimate.config, estimate.cluster, estimate.footprint
    training, sizes = config.training, estimate.sizes
    absent = " (data.expect; the shards are not here)" if estimate.plan.data_is_absent else ""
    return "\n".join(
        (
            f"run      {config.output_dir} on {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}, "
            f"{estimate.division}, {training.precision}",
            f"data     {sizes.num_frames} frames of {sizes.num_channels} x {sizes.height} x {sizes.width}, "
            f"{sizes.num_action_channels} actions{absent}",
            f"network  {config.model.describe()}: {estimate.num_params / 1e6:,.1f} M parameters",
            f"batch    {training.global_batch_size} = {training.micro_batch_per_gpu} samples x "
            f"{footprint.accumulation} accumulation x {cluster.num_gpus // config.ranks_per_sample}",
        )
    )


def _memory_table(estimate: RunEstimate) -> str:
    """Memory by part for every division of the state, the configuration's own marked."""
    chosen = estimate.division
    lines = [f"{'GiB per GPU':<18}" + "".join(f"{part:>12}" for part in (*_PARTS, "peak"))]
    for division, footprint in (estimate.footprint.alternatives() or {chosen: estimate.footprint}).items():
        memory = estimate.memory(footprint)
        name = division + (" <-" if division == chosen else "")
        fits = "" if memory.peak <= estimate.usable_bytes else "  does not fit"
        lines.append(f"{name:<18}{_numbers(memory)}{fits}")
    memory, fitting = estimate.memory(), estimate.largest_micro_batch
    if memory.host_parts:
        host = ", ".join(f"{part} {size / _GIB:.2f}" for part, size in memory.host_parts.items())
        lines.append(f"on the host, GiB per GPU: {host}")
    lines.append(
        f"peak at: {memory.phase} (gradients come as activations go); usable: {estimate.usable_bytes / _GIB:.1f} of "
        f"{estimate.cluster.gpu.memory_bytes / _GIB:.1f} GiB"
    )
    lines.append(f"largest training.micro_batch_per_gpu that fits: {fitting or 'not even 1'}")
    return "\n".join(lines)


def _numbers(memory: MemoryEstimate) -> str:
    return "".join(f"{size / _GIB:>12.2f}" for size in (*(memory.parts[part] for part in _PARTS), memory.peak))


def _kernel_table(estimate: RunEstimate) -> str:
    """What the network's micro-batch launches by kind, longest first, with the three longest operations of each; then
    the parts of the update."""
    precision, step = estimate.config.training.precision, estimate.step
    rates = estimate.assumptions.rates(estimate.cluster.gpu, precision)
    operations = by_operation(estimate.launches, rates)
    samples = estimate.config.training.micro_batch_per_gpu
    lines = [f"{f'network, {samples} samples':<32}{'ms':>8}{'calls':>8}{'GB':>8}  longest (ms)"]
    for kind, total in by_kind(estimate.launches, rates).items():
        named = [(name.removeprefix(f"{kind}: "), of.seconds) for name, of in operations.items() if f"{kind}: " in name]
        longest = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in named[:3])
        numbers = f"{1e3 * total.seconds:>8.1f}{total.calls:>8}{total.bytes / 1e9:>8.1f}"
        lines.append(f"{kind:<32}{numbers}  {longest}")
    lines += [f"{f'update: {part}':<32}{1e3 * seconds:>8.1f}" for part, seconds in step.update_sec.items()]
    return "\n".join(lines)


def _time_lines(estimate: RunEstimate, price: float | None) -> str:
    step, hours = estimate.step, estimate.hours
    network, update = sum(step.network_sec.values()), sum(step.update_sec.values())
    gpu_hours = hours * estimate.cluster.num_gpus
    samples_per_sec = estimate.config.training.global_batch_size / step.total_sec
    cost = f", cost {gpu_hours * price:,.0f} at {price:g} per GPU-hour" if price is not None else ""
    return "\n".join(
        (
            f"step     {step.total_sec:.3f} s: network {network:.3f}, waiting for communication "
            f"{step.exposed_sec:.3f}, update of the weights {update:.3f}",
            f"network  {step.sent_bytes / _GIB:.2f} GiB sent by each GPU and step, {step.communication_sec:.3f} s",
            f"speed    {samples_per_sec:,.0f} samples/s, MFU {step.mfu:.1%}",
            f"time     {estimate.config.training.steps:,} steps: {hours:,.1f} h, {gpu_hours:,.0f} GPU-hours{cost}",
        )
    )


def _basis(estimate: RunEstimate) -> str:
    """What the numbers rest on."""
    gpu = estimate.cluster.gpu
    shown = ", ".join(f"{name} {value:g}" for name, value in estimate.assumptions.model_dump().items())
    return "\n".join(
        (
            f"{gpu.name}: {gpu.peak_flops(estimate.config.training.precision) / 1e12:,.0f} TFLOP/s, memory "
            f"{gpu.memory_bandwidth / 1e9:,.0f} GB/s, GPU to GPU {gpu.link_bandwidth / 1e9:,.0f} GB/s, between nodes "
            f"{gpu.network_bandwidth / 1e9:g} GB/s per GPU, to the host {gpu.host_bandwidth / 1e9:g} GB/s",
            f"assumed: {shown}",
            "Memory is checked against processes on a CPU and one H100. On one H200 robonet_xl's network took 1.4 "
            "times, a step without accumulation 1.8 times what is foretold (docs/launch.md). Loading of data and the "
            "host's work are taken to keep up.",
        )
    )
