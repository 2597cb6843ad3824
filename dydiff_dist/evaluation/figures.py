"""Figures of forecasts: the ensemble beside the truth, frames beside what was decoded of them, time series, scores.

Letters: M members, S lead times, C channels, H W height and width.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.colors import BACKGROUND, ERROR_COLORMAP, FAINT_INK, FORECASTERS, INK, OURS, FieldStyle
from dydiff_dist.evaluation.evaluate import Evaluation
from dydiff_dist.files import write_bytes

MAX_COLUMNS = 6


def forecast_figure(case: ForecastCase, style: FieldStyle, title: str = "") -> Figure:
    """Truth, ensemble mean, two members and the mean's error in rows; lead times in columns.

    The first column of the first row is the last given frame. All fields share one colour scale, set by the truth.

    Args:
        case: the forecast.
        style: how its frames are shown, as ``CaseReader.style()`` gives it.
        title: above all; empty names members, quantity and case.

    Examples:
        >>> from dydiff_dist.evaluation.colors import field_style
        >>> noise = np.random.default_rng(0).normal(size=(5, 1, 16, 16))
        >>> case = ForecastCase(0, "noise", history=noise[:2], truth=noise[2:], members=noise[None, 2:])
        >>> figure = forecast_figure(case, field_style(num_channels=1))
        >>> len(figure.axes)  # truth, mean, one member and error, by last given frame and three lead times
        16
    """
    leads = spaced(case.num_leads, MAX_COLUMNS)
    shown = {label: style.show(frames) for label, frames in case.shown_futures().items()}
    given = style.show(case.history[-1])
    limits = style.limits(np.concatenate([shown["truth"], given[None]]))

    figure, axes = _frame_grid(len(shown) + 1, len(leads) + 1, case.truth.shape[-2:])
    _draw_frames(axes[0, :1], given[None], style, limits)
    axes[0, 0].set_title("last given", color=FAINT_INK, fontsize=11, pad=6)
    for axis, lead in zip(axes[0, 1:], leads, strict=True):
        axis.set_title(f"+{lead + 1}", color=INK, fontsize=13, pad=6)
    for row, (label, fields) in enumerate(shown.items()):
        _label_row(axes[row, 0], label, on_frame=row == 0)
        _draw_frames(axes[row, 1:], fields[leads], style, limits)
    _label_row(axes[-1, 0], "error of\nthe mean")
    _draw_errors(axes[-1, 1:], style.error(shown["ensemble mean"], shown["truth"])[leads], limits)
    caption = title or f"{len(case.members)} members, {style.quantity}, case {case.key}"
    figure.text(0.012, 0.988, caption, color=INK, fontsize=13, va="top", ha="left")
    return figure


def reconstruction_figure(
    samples: list[tuple[str, np.ndarray, np.ndarray]],
    style: FieldStyle,
    title: str = "",
    num_columns: int = MAX_COLUMNS,
) -> Figure:
    """Frames over what was decoded of them over the difference, in three rows per sample.

    Args:
        samples: (key, truth (S, C, H, W), decoded (S, C, H, W)) each, in stored units.
        style: how the data are shown.
        title: above all.
        num_columns: frames shown of each sample, evenly spaced.
    """
    figure, axes = _frame_grid(3 * len(samples), num_columns + 1, samples[0][1].shape[-2:])
    for (key, truth, decoded), rows in zip(samples, axes.reshape(len(samples), 3, -1), strict=True):
        frames = np.linspace(0, len(truth) - 1, num_columns).round().astype(int)
        shown, shown_decoded = (style.show(values.astype(np.float32)) for values in (truth, decoded))
        limits = style.limits(shown)
        for row, label in zip(rows, (key, "decoded", "error"), strict=True):
            _label_row(row[0], label, fontsize=9)
        _draw_frames(rows[0, 1:], shown[frames], style, limits)
        _draw_frames(rows[1, 1:], shown_decoded[frames], style, limits)
        _draw_errors(rows[2, 1:], style.error(shown_decoded, shown)[frames], limits)
    figure.text(0.012, 0.988, title or style.quantity, color=INK, fontsize=11, va="top", ha="left")
    return figure


def _frame_grid(num_rows: int, num_columns: int, frame_shape: tuple[int, ...]) -> tuple[Figure, np.ndarray]:
    """Axes without ticks for frames of this shape; one side's label column included."""
    height, width = frame_shape
    panel_width = 1.55
    panel_height = panel_width * height / width
    top, left = 0.72, 0.12
    size = (num_columns * panel_width + left, num_rows * panel_height + top)
    figure = Figure(figsize=size, facecolor=BACKGROUND)
    axes = figure.subplots(
        num_rows,
        num_columns,
        squeeze=False,
        gridspec_kw={
            "left": left / size[0],
            "right": 1 - 0.08 / size[0],
            "top": 1 - top / size[1],
            "bottom": 0.08 / size[1],
            "wspace": 0.045,
            "hspace": 0.045 * width / height,
        },
    )
    for axis in axes.flat:
        axis.set_facecolor(BACKGROUND)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes


def _label_row(axis: Axes, label: str, *, on_frame: bool = False, fontsize: float = 12) -> None:
    """A row's name in its first column, or in a corner of the frame that the column holds."""
    if on_frame:
        box = {"facecolor": BACKGROUND, "alpha": 0.75, "edgecolor": "none", "boxstyle": "round,pad=0.25"}
        axis.text(0.95, 0.08, label, transform=axis.transAxes, color=INK, fontsize=12, ha="right", bbox=box, zorder=3)
    else:
        axis.text(0.95, 0.5, label, transform=axis.transAxes, color=INK, fontsize=fontsize, ha="right", va="center")


def _draw_frames(axes: np.ndarray, shown: np.ndarray, style: FieldStyle, limits: tuple[float, float]) -> None:
    for axis, field in zip(axes, shown, strict=True):
        axis.imshow(style.rgb(field, limits), interpolation="nearest")


def _draw_errors(axes: np.ndarray, errors: np.ndarray, limits: tuple[float, float]) -> None:
    """Signed errors; half the range of the fields is the end of the scale."""
    span = (limits[1] - limits[0]) / 2
    for axis, error in zip(axes, errors, strict=True):
        axis.imshow(error, cmap=ERROR_COLORMAP, vmin=-span, vmax=span)


def series_figure(case: ForecastCase, channels: tuple[str, ...] = (), max_channels: int = 8) -> Figure:
    """Time series, frames of one pixel: truth, median and the 50 % and 90 % bands of the members, a panel a channel.

    Args:
        case: the forecast.
        channels: their names; those without one are numbered.
        max_channels: that are shown, the first ones.
    """
    history, truth, members = (x[..., 0, 0] for x in (case.history, case.truth, case.members))
    count = min(truth.shape[1], max_channels)
    rows = -(-count // 2)
    figure = Figure(figsize=(11, 0.7 + 2.1 * rows), facecolor=BACKGROUND, layout="constrained")
    given, leads = np.arange(1 - len(history), 1), np.arange(1, len(truth) + 1)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for channel, axis in enumerate(panels[:count]):
        for low, high, alpha in ((0.05, 0.95, 0.18), (0.25, 0.75, 0.32)):
            band = np.quantile(members[..., channel], (low, high), axis=0)
            axis.fill_between(leads, *band, color=OURS, alpha=alpha, linewidth=0)
        axis.plot(leads, np.median(members[..., channel], axis=0), color=OURS, linewidth=2, label="median")
        actual = np.concatenate([history[:, channel], truth[:, channel]])
        axis.plot(np.concatenate([given, leads]), actual, color=INK, linewidth=1.3, label="truth")
        axis.axvline(0.5, color=FAINT_INK, linewidth=0.8, linestyle=":")
        style_axis(axis, channel_name(channels, channel), from_zero=False)
    panels[0].legend(frameon=False, labelcolor=INK, fontsize=10)
    for axis in panels[count:]:
        axis.set_visible(False)
    return figure


def channel_name(channels: Sequence[str], channel: int) -> str:
    """What a channel is called: ``channel 3`` where it has no name."""
    return channels[channel] if channel < len(channels) else f"channel {channel}"


def score_figure(evaluation: Evaluation, scores: tuple[str, ...] = ("crps", "mse")) -> Figure:
    """Scores by lead time, one panel a score: this model and its baselines, with 95 % bootstrap bands."""
    titles = {"crps": "CRPS", "mse": "MSE of the ensemble mean"}
    figure = Figure(figsize=(5.4 * len(scores), 4.0), facecolor=BACKGROUND, layout="constrained")
    for axis, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        for name in evaluation.tables:
            label, _, color, line, width = FORECASTERS[name]
            by_lead = evaluation.by_lead(name)[score]
            lower, upper = evaluation.intervals(name, score).by_lead
            leads = np.arange(1, len(by_lead) + 1)
            axis.fill_between(leads, lower, upper, color=color, alpha=0.16, linewidth=0)
            axis.plot(leads, by_lead, line, color=color, linewidth=width, label=label)
        style_axis(axis, titles.get(score, score))
        axis.legend(frameon=False, labelcolor=INK, fontsize=11)
    return figure


def style_axis(axis: Axes, title: str, from_zero: bool = True, xlabel: str = "lead time (frames)") -> None:
    """Gives a panel with curves its title, axes, grid and colours; ``from_zero`` starts the vertical axis at 0."""
    axis.set_facecolor(BACKGROUND)
    axis.set_title(title, color=INK, fontsize=13, loc="left", pad=10)
    axis.set_xlabel(xlabel, color=FAINT_INK, fontsize=11)
    if from_zero:
        axis.set_ylim(bottom=0)
    axis.locator_params(axis="x", integer=True)
    axis.margins(x=0.02)
    axis.tick_params(colors=FAINT_INK, labelsize=10)
    axis.grid(True, color="#21262d", linewidth=0.8)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#30363d")


def save_figure(figure: Figure, path: str | Path, dpi: int = 140) -> Path:
    """Writes a figure as PNG with its own background at ``dpi`` dots per inch; creates the folder where needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    write_bytes(path, picture.getvalue())
    return path


def spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of 0..count-1, evenly spaced, first and last included.

    Examples:
        >>> spaced(11, 6)
        [0, 2, 4, 6, 8, 10]
    """
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, most))})
