"""Curves of a study: scores by lead time beside the baselines, by what sampling costs, and by what training costs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from dydiff_dist.evaluation.colors import BACKGROUND, CURVE_COLORS, FORECASTERS, INK
from dydiff_dist.evaluation.figures import style_axis
from dydiff_dist.study.intervals import Difference, Scored

REFERENCE_COLOR = "#e6edf3"


def lead_figure(
    score: str,
    reference: tuple[str, Scored],
    arms: Mapping[str, Scored],
    by_lead: Mapping[str, Sequence[Difference]],
    baselines: Mapping[str, Scored],
) -> Figure:
    """Left the score by lead time with the baselines, right the difference to the reference in percent with intervals.

    Args:
        score: name of the score, as titles show it.
        reference: label and scores of what the others are compared with.
        arms: label -> scores.
        by_lead: label -> differences at every lead time.
        baselines: name -> scores.
    """
    figure = Figure(figsize=(11.0, 4.4), facecolor=BACKGROUND, layout="constrained")
    absolute, relative = figure.subplots(1, 2)
    for name, scored in baselines.items():
        style = FORECASTERS[name]
        absolute.plot(_leads(scored), scored.by_lead(), ":", color=style.color, label=style.label)
    label, scored = reference
    absolute.plot(_leads(scored), scored.by_lead(), color=REFERENCE_COLOR, linewidth=2, label=label)
    relative.axhline(0, color=REFERENCE_COLOR, linewidth=1.4)
    for color, (label, scored) in zip(_cycle(len(arms)), arms.items(), strict=True):
        leads = _leads(scored)
        absolute.plot(leads, scored.by_lead(), color=color, linewidth=2, label=label)
        lower, middle, upper = (
            [100 * getattr(difference, name) for difference in by_lead[label]]
            for name in ("lower", "relative", "upper")
        )
        if len(arms) <= 3:  # more bands would hide each other
            relative.fill_between(leads, lower, upper, color=color, alpha=0.16, linewidth=0)
        relative.plot(leads, middle, color=color, linewidth=2, label=label)
    style_axis(absolute, score)
    style_axis(relative, f"{score}: difference to {reference[0]} (%)", from_zero=False)
    absolute.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def cost_figure(score: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """The score by network evaluations per forecast, one curve a sampler.

    Args:
        score: name of the score.
        curves: label -> (evaluations, score) points, ascending.
    """
    figure = Figure(figsize=(6.4, 4.2), facecolor=BACKGROUND, layout="constrained")
    axis = figure.subplots()
    for color, (label, points) in zip(_cycle(len(curves)), curves.items(), strict=True):
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, "o-", color=color, linewidth=2, markersize=4, label=label)
    ticks = sorted({steps for points in curves.values() for steps, _ in points})
    style_axis(axis, score, from_zero=False, xlabel="passes through the network per forecast")
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def learning_figure(panels: Mapping[str, Mapping[str, Sequence[tuple[int, np.ndarray]]]]) -> Figure:
    """The score by passes in training, a panel a study: the mean of the seeds, in a band from the best to the worst.

    Args:
        panels: title -> label -> (passes, scores of all seeds) points, ascending.
    """
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.6 * columns, 4.2 * rows), facecolor=BACKGROUND, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        for color, (label, points) in zip((REFERENCE_COLOR, *CURVE_COLORS), curves.items(), strict=False):
            passes, scores = [count for count, _ in points], [by_seed for _, by_seed in points]
            axis.fill_between(
                passes, [s.min() for s in scores], [s.max() for s in scores], color=color, alpha=0.18, linewidth=0
            )
            axis.plot(passes, [s.mean() for s in scores], "o-", color=color, linewidth=2, markersize=4, label=label)
        style_axis(axis, title, from_zero=False, xlabel="passes through the network in training")
        axis.set_xscale("log")
        counts = sorted({count for points in curves.values() for count, _ in points})
        ticks = [tick for tick, before in zip(counts, [0, *counts], strict=False) if tick > 1.1 * before]
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set_xticks([], minor=True)
        axis.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def _leads(scored: Scored) -> np.ndarray:
    return np.arange(1, scored.value.shape[-1] + 1)


def _cycle(count: int) -> list[str]:
    return [CURVE_COLORS[index % len(CURVE_COLORS)] for index in range(count)]
