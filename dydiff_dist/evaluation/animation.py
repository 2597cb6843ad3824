"""Animations of forecasts: truth, one member and the ensemble mean side by side.

Letters: S lead times, C channels, H W height and width.
"""

from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

from dydiff_dist.evaluation.case import ForecastCase
from dydiff_dist.evaluation.colors import BACKGROUND, FAINT_INK, INK, OURS, FieldStyle
from dydiff_dist.evaluation.figures import spaced
from dydiff_dist.files import write_bytes

_PENDING = "#21262d"
_COLORMAP_LEVELS = 56


def forecast_animation(
    case: ForecastCase, style: FieldStyle, path: str | Path, *, panel_pixels: int = 152, frame_ms: int = 220
) -> Path:
    """Writes a looping GIF, or an MP4 by the name's ending: truth, one member and the ensemble mean side by side.

    The truth may be shorter than the forecast or missing; its panel is empty there. To look at only: scores are
    never taken from a video file.

    Args:
        case: the forecast.
        style: how its frames are shown.
        path: ends in .gif or .mp4.
        panel_pixels: width of each of the three panels.
        frame_ms: how long a frame is shown, in milliseconds; the last one four times as long.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = _animation_images(case, style, panel_pixels)
    durations = [frame_ms] * (len(images) - 1) + [4 * frame_ms]
    movie = BytesIO()
    if path.suffix == ".mp4":
        _write_mp4(images, durations, movie)
    else:
        palette = _palette(style, images)
        first, *more = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
        timing = {"duration": durations, "loop": 0, "optimize": False}
        first.save(movie, format="GIF", save_all=True, append_images=more, **timing)
    write_bytes(path, movie.getvalue())
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


def _write_mp4(images: list[Image.Image], durations: list[int], file: BytesIO) -> None:
    """H.264 of constant frame rate; a frame that rests is written several times."""
    unit_ms = min(durations)
    with av.open(file, "w", format="mp4") as container:
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
    color = FAINT_INK if is_given else OURS
    draw.text((canvas.width - gap - draw.textlength(text, font), head + height + 6), text, font=font, fill=color)
    # a tick per frame: grey for given frames, orange for forecast ones, faint where still to come
    top, step = head + height + 11, (canvas.width - 2 * gap - caption_width) / num_frames
    for tick in range(num_frames):
        start = gap + tick * step
        color = _PENDING if tick > frame else (FAINT_INK if tick < num_given else OURS)
        draw.rounded_rectangle((start, top, start + step - 3, top + 6), radius=3, fill=color)
    return canvas


def _palette(style: FieldStyle, images: list[Image.Image]) -> Image.Image:
    """One palette for all frames, so that colours don't flicker: of the colour map and the writing, or of the images.

    Few levels of the colour map keep the file small: neighbouring pixels share them.
    """
    if style.scalar is None:
        strip = Image.new("RGB", (images[0].width, images[0].height * min(len(images), 6)))
        for row, index in enumerate(spaced(len(images), 6)):
            strip.paste(images[index], (0, row * images[0].height))
        return strip.quantize(200, method=Image.Quantize.MEDIANCUT)
    levels = style.colormap(np.linspace(0, 1, _COLORMAP_LEVELS))[:, :3]
    ramps = [np.linspace(to_rgb(BACKGROUND), to_rgb(color), 7) for color in (INK, FAINT_INK, OURS)]
    entries = np.round(np.concatenate([levels, *ramps, [to_rgb(_PENDING)]]) * 255).astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(entries.tobytes())
    return palette
