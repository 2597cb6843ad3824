"""Pictures of forecasts: the ensemble beside the truth, its animation, scores by lead time.

Letters: M members, S lead times, C channels, H W height and width.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from dydiff_dist.evaluation import colors
from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.colors import BACKGROUND, FAINT_INK, INK, FieldStyle
from dydiff_dist.evaluation.evaluate import Evaluation
from dydiff_dist.evaluation.table import interval_95

MAX_COLUMNS = 6
_PENDING = "#21262d"
_COLORMAP_LEVELS = 56


def forecast_figure(case: ForecastCase, style: FieldStyle, title: str = "") -> Figure:
    """Truth, ensemble mean, two members and the mean's error in rows; lead times in columns.

    The first column of the first row is the last given frame. All fields share one colour scale, set by the truth.
    """
    leads = _spaced(len(case.truth), MAX_COLUMNS)
    mean = case.members.mean(axis=0)
    rows = {"truth": case.truth, "ensemble mean": mean}
    rows |= {f"member {m + 1}": case.members[m] for m in range(min(2, len(case.members)))}
    shown = {label: style.show(frames) for label, frames in rows.items()}
    given = style.show(case.history[-1])
    limits = style.limits(np.concatenate([shown["truth"], given[None]]))
    error = shown["ensemble mean"] - shown["truth"]
    error = error.mean(axis=-1) if style.scalar is None else error

    figure, axes = frame_grid(len(rows) + 1, len(leads) + 1, case.truth.shape[-2:])
    for row, (label, fields) in enumerate(shown.items()):
        _label_row(axes[row, 0], label)
        for column, lead in enumerate(leads, start=1):
            axes[row, column].imshow(style.rgb(fields[lead], limits), interpolation="nearest")
            if row == 0:
                axes[row, column].set_title(f"+{lead + 1}", color=INK, fontsize=13, pad=6)
    axes[0, 0].imshow(style.rgb(given, limits), interpolation="nearest")
    axes[0, 0].set_title("last given", color=FAINT_INK, fontsize=11, pad=6)
    _label_row(axes[-1, 0], "error of\nthe mean")
    span = (limits[1] - limits[0]) / 2 if style.scalar is not None else 0.5
    for column, lead in enumerate(leads, start=1):
        axes[-1, column].imshow(error[lead], cmap=colors.error_colormap(), vmin=-span, vmax=span)
    caption = title or f"{len(case.members)} members, {style.quantity}, case {case.key}"
    figure.text(0.012, 0.988, caption, color=INK, fontsize=13, va="top", ha="left")
    return figure


def frame_grid(num_rows: int, num_columns: int, frame_shape: tuple[int, int]) -> tuple[Figure, np.ndarray]:
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
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def _label_row(axis, label: str) -> None:
    """A row's name in its first column; on the truth's row the column holds a frame, so the name stands in it."""
    if label == "truth":
        box = {"facecolor": BACKGROUND, "alpha": 0.75, "edgecolor": "none", "boxstyle": "round,pad=0.25"}
        axis.text(0.95, 0.08, label, transform=axis.transAxes, color=INK, fontsize=12, ha="right", bbox=box, zorder=3)
    else:
        axis.text(0.95, 0.5, label, transform=axis.transAxes, color=INK, fontsize=12, ha="right", va="center")


def forecast_animation(
    case: ForecastCase, style: FieldStyle, path: str | Path, *, panel_pixels: int = 152, frame_ms: int = 220
) -> Path:
    """Writes a looping GIF, or an MP4 by the name's ending: truth, one member and the ensemble mean side by side.

    The truth may be shorter than the forecast or missing; its panel is empty there. To look at only: scores are
    never taken from a video file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = _animation_images(case, style, panel_pixels)
    durations = [frame_ms] * (len(images) - 1) + [4 * frame_ms]
    if path.suffix == ".mp4":
        _write_mp4(images, durations, path)
        return path
    palette = _palette(style, images)
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=durations, loop=0, optimize=False)
    return path


def _animation_images(case: ForecastCase, style: FieldStyle, panel_pixels: int) -> list[Image.Image]:
    """Every frame from the first given one to the last forecast one."""
    panels = {"truth": case.truth, "a member": case.members[0], "ensemble mean": case.members.mean(axis=0)}
    shown = {
        label: style.show(np.concatenate([case.history, future]).astype(np.float32)) for label, future in panels.items()
    }
    limits = style.limits(shown["truth"])
    num_given, num_frames = len(case.history), len(case.history) + case.members.shape[1]
    images = []
    for frame in range(num_frames):
        pictures = {
            label: _enlarged(fields[frame], style, limits, panel_pixels) if frame < len(fields) else None
            for label, fields in shown.items()
        }
        images.append(_animation_frame(pictures, frame, num_given, num_frames))
    return images


def _write_mp4(images: list[Image.Image], durations: list[int], path: Path) -> None:
    """H.264 of constant frame rate; a frame that rests is written several times."""
    import av  # most pictures are not videos

    unit_ms = min(durations)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(1000, unit_ms))
        stream.width, stream.height = (size // 2 * 2 for size in images[0].size)  # H.264 wants even numbers
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        for image, duration in zip(images, durations, strict=True):
            frame = av.VideoFrame.from_image(image.crop((0, 0, stream.width, stream.height)))
            for _ in range(round(duration / unit_ms)):
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _enlarged(field: np.ndarray, style: FieldStyle, limits: tuple[float, float], width: int) -> Image.Image:
    """One shown frame, (H, W) or (H, W, 3), at this width. Quantities are enlarged before they are coloured."""
    size = (width, round(width * field.shape[0] / field.shape[1]))
    if style.scalar is None:
        return Image.fromarray(style.rgb(field, limits)).resize(size, Image.Resampling.BICUBIC)
    smooth = np.asarray(Image.fromarray(field.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray(style.rgb(smooth, limits))


def _animation_frame(
    pictures: dict[str, Image.Image | None], frame: int, num_given: int, num_frames: int
) -> Image.Image:
    """One frame: panels with their names, and a bar below that tells given frames from forecast ones."""
    gap, head, foot, caption_width = 8, 28, 28, 92
    width, height = next(picture for picture in pictures.values() if picture is not None).size
    canvas = Image.new("RGB", (len(pictures) * (width + gap) + gap, head + height + foot), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    for index, (label, picture) in enumerate(pictures.items()):
        left = gap + index * (width + gap)
        if picture is not None:
            canvas.paste(picture, (left, head))
        draw.text((left + 1, 6), label if picture is not None else f"no {label}", fill=INK, font=font)
    is_given = frame < num_given
    text = "given" if is_given else f"forecast +{frame - num_given + 1}"
    color = FAINT_INK if is_given else colors.OURS
    draw.text((canvas.width - gap - draw.textlength(text, font), head + height + 6), text, font=font, fill=color)
    _progress_bar(draw, frame, num_given, num_frames, (gap, head + height + 11, canvas.width - gap - caption_width))
    return canvas


def _progress_bar(
    draw: ImageDraw.ImageDraw, frame: int, num_given: int, num_frames: int, place: tuple[int, int, int]
) -> None:
    """A row of ticks, one per frame: grey for given frames, orange for forecast ones, faint where still to come."""
    left, top, right = place
    step = (right - left) / num_frames
    for tick in range(num_frames):
        color = _PENDING if tick > frame else (FAINT_INK if tick < num_given else colors.OURS)
        draw.rounded_rectangle((left + tick * step, top, left + (tick + 1) * step - 3, top + 6), radius=3, fill=color)


def _palette(style: FieldStyle, images: list[Image.Image]) -> Image.Image:
    """One palette for all frames, so that colours don't flicker: of the colour map and the writing, or of the images.

    Few levels of the colour map keep the file small: neighbouring pixels share them.
    """
    if style.scalar is None:
        strip = Image.new("RGB", (images[0].width, images[0].height * min(len(images), 6)))
        for row, index in enumerate(_spaced(len(images), 6)):
            strip.paste(images[index], (0, row * images[0].height))
        return strip.quantize(200, method=Image.Quantize.MEDIANCUT)
    levels = style.colormap(np.linspace(0, 1, _COLORMAP_LEVELS))[:, :3]
    ramps = [np.linspace(to_rgb(BACKGROUND), to_rgb(color), 7) for color in (INK, FAINT_INK, colors.OURS)]
    entries = np.round(np.concatenate([levels, *ramps, [to_rgb(_PENDING)]]) * 255).astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(entries.tobytes())
    return palette


def series_figure(case: ForecastCase, channels: tuple[str, ...] = (), max_channels: int = 8) -> Figure:
    """Time series, frames of one pixel: truth, median and the 50 % and 90 % bands of the members, a panel a channel."""
    history, truth, members = (x[..., 0, 0] for x in (case.history, case.truth, case.members))
    count = min(truth.shape[1], max_channels)
    rows = -(-count // 2)
    figure = Figure(figsize=(11, 0.7 + 2.1 * rows), facecolor=BACKGROUND, layout="constrained")
    given, leads = np.arange(1 - len(history), 1), np.arange(1, len(truth) + 1)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for channel, axis in enumerate(panels[:count]):
        for low, high, alpha in ((0.05, 0.95, 0.18), (0.25, 0.75, 0.32)):
            band = np.quantile(members[..., channel], (low, high), axis=0)
            axis.fill_between(leads, *band, color=colors.OURS, alpha=alpha, linewidth=0)
        axis.plot(leads, np.median(members[..., channel], axis=0), color=colors.OURS, linewidth=2, label="median")
        actual = np.concatenate([history[:, channel], truth[:, channel]])
        axis.plot(np.concatenate([given, leads]), actual, color=INK, linewidth=1.3, label="truth")
        axis.axvline(0.5, color=FAINT_INK, linewidth=0.8, linestyle=":")
        style_axis(axis, channels[channel] if channel < len(channels) else f"channel {channel}", from_zero=False)
    panels[0].legend(frameon=False, labelcolor=INK, fontsize=10)
    for axis in panels[count:]:
        axis.set_visible(False)
    return figure


def score_figure(evaluation: Evaluation, scores: tuple[str, ...] = ("crps", "mse")) -> Figure:
    """Scores by lead time, one panel a score: this model and its baselines, with 95 % bootstrap bands."""
    titles = {"crps": "CRPS", "mse": "MSE of the ensemble mean"}
    figure = Figure(figsize=(5.4 * len(scores), 4.0), facecolor=BACKGROUND, layout="constrained")
    for axis, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        for name in evaluation.tables:
            label, _, color, line, width = colors.FORECASTERS[name]
            by_lead = evaluation.by_lead(name)[score]
            lower, upper = interval_95(evaluation.draws(name).by_lead[score])
            leads = np.arange(1, len(by_lead) + 1)
            axis.fill_between(leads, lower, upper, color=color, alpha=0.16, linewidth=0)
            axis.plot(leads, by_lead, line, color=color, linewidth=width, label=label)
        style_axis(axis, titles.get(score, score))
        axis.legend(frameon=False, labelcolor=INK, fontsize=11)
    return figure


def style_axis(axis, title: str, from_zero: bool = True, xlabel: str = "lead time (frames)") -> None:
    """The look of every panel with curves."""
    axis.set_facecolor(BACKGROUND)
    axis.set_title(title, color=INK, fontsize=13, loc="left", pad=10)
    axis.set_xlabel(xlabel, color=FAINT_INK, fontsize=11)
    if from_zero:
        axis.set_ylim(bottom=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.margins(x=0.02)
    axis.tick_params(colors=FAINT_INK, labelsize=10)
    axis.grid(True, color="#21262d", linewidth=0.8)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#30363d")


def save_figure(figure: Figure, path: str | Path, dpi: int = 140) -> Path:
    """Writes a figure as PNG with its own background."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, facecolor=figure.get_facecolor())
    return path


def _spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of 0..count-1, evenly spaced, first and last included."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, most))})
