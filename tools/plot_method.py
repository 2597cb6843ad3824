"""Draws docs/images/method.png: a turbulent flow under standard diffusion beside Dynamical Diffusion."""

import argparse
from io import BytesIO
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dydiff_dist.data.turbulence_solver import TurbulenceConfig, simulate
from dydiff_dist.diffusion import DiffusionProcess, build_process
from dydiff_dist.errors import run_command
from dydiff_dist.evaluation.colors import BACKGROUND, INK, field_style

NUM_FRAMES = 16
SHOWN_FRAMES = (0, 1, 3, 7, 15)
TIMESTEPS = (-1, 400, 600, 800, 960)
GAMMA_RATIO = 0.9
PANEL_INCHES, SLICE_INCHES, GAP_INCHES = 0.96, 1.44, 0.04
STYLE = field_style(2, vector_channels=(0, 1))
COLOUR_LIMIT = 2.5
"""Of the colour scale, in standard deviations of the clean field."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/method.png"), help="Default: %(default)s.")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_small(draw(turbulent_field()), arguments.out)
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size / 1000:.0f} kB")


def turbulent_field() -> Tensor:
    """Vorticity of simulated turbulence, of unit variance, (1, S, H, W) float32."""
    velocity_RSCHW = next(simulate(TurbulenceConfig(resolution=48), 0, "figure", range(1), 1, NUM_FRAMES, 0))
    vorticity_RSHW = torch.from_numpy(STYLE.show(velocity_RSCHW.numpy()))
    return vorticity_RSHW / vorticity_RSHW.std()


def draw(field_BSHW: Tensor) -> Figure:
    """Rows are timesteps; both columns show the same field and the same noise ε."""
    noise = torch.randn(field_BSHW.shape, generator=torch.Generator().manual_seed(0))
    processes = {
        "Standard diffusion    z = √ᾱ x + √(1-ᾱ) ε": build_process(process="standard"),
        "Dynamical Diffusion    z = D ( √ᾱ x + √(1-ᾱ) ε )": build_process(gamma_ratio=GAMMA_RATIO),
    }
    figure = Figure(facecolor=BACKGROUND)
    layout = Layout(figure, num_rows=len(TIMESTEPS))
    for column, (title, process) in enumerate(processes.items()):
        layout.write_title(column, title)
        for row, timestep in enumerate(TIMESTEPS):
            z = field_BSHW if timestep < 0 else process.add_noise(field_BSHW, torch.tensor([timestep]), noise)[0]
            draw_row(layout.row_of_axes(row, column), z[0])
            layout.write_level(row, column, level_label(process, timestep, with_gamma=column == 1))
    return figure


def draw_row(axes: list[Axes], z_SHW: Tensor) -> None:
    """The shown frames, then the middle row of the image against the frame number (downwards)."""
    pictures = [*(z_SHW[frame] for frame in SHOWN_FRAMES), z_SHW[:, z_SHW.shape[1] // 2]]
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(
            picture, STYLE.colormap, vmin=-COLOUR_LIMIT, vmax=COLOUR_LIMIT, aspect="auto", interpolation="nearest"
        )


def level_label(process: DiffusionProcess, timestep: int, with_gamma: bool) -> str:
    if timestep < 0:
        return "clean"
    if with_gamma:
        return f"γ̄ = {process.table.frame_gamma[timestep]:.2f}"
    return f"t = {timestep}\nᾱ = {process.table.signal[timestep] ** 2:.3f}"


class Layout:
    """Places panels by inches, so that each pixel of a field is a whole number of pixels of the figure."""

    def __init__(self, figure: Figure, num_rows: int):
        self.figure = figure
        self.label, self.header = 1.02, 0.72
        self.block = self.label + len(SHOWN_FRAMES) * (PANEL_INCHES + GAP_INCHES) + 0.16 + SLICE_INCHES
        self.size = (2 * self.block + 0.15, self.header + num_rows * (PANEL_INCHES + GAP_INCHES) + 0.1)
        figure.set_size_inches(*self.size)

    def row_of_axes(self, row: int, column: int) -> list[Axes]:
        lefts = [k * (PANEL_INCHES + GAP_INCHES) for k in range(len(SHOWN_FRAMES) + 1)]
        lefts[-1] += 0.16
        widths = [*[PANEL_INCHES] * len(SHOWN_FRAMES), SLICE_INCHES]
        start = column * self.block + self.label
        bottom = self.size[1] - self.header - (row + 1) * (PANEL_INCHES + GAP_INCHES)
        axes = [self._axes(start + left, bottom, width) for left, width in zip(lefts, widths, strict=True)]
        if row == 0:
            names = [*(f"frame {frame}" for frame in SHOWN_FRAMES), "middle row by frame ↓"]
            for axis, name in zip(axes, names, strict=True):
                axis.set_title(name, color=INK, fontsize=10, pad=5)
        return axes

    def write_title(self, column: int, title: str) -> None:
        x = (column * self.block + self.label) / self.size[0]
        self.figure.text(x, 1 - 0.27 / self.size[1], title, color=INK, fontsize=14, va="center")

    def write_level(self, row: int, column: int, label: str) -> None:
        x = (column * self.block + self.label - 0.1) / self.size[0]
        y = 1 - (self.header + (row + 0.5) * (PANEL_INCHES + GAP_INCHES)) / self.size[1]
        self.figure.text(x, y, label, color=INK, fontsize=11, ha="right", va="center", linespacing=1.5)

    def _axes(self, left: float, bottom: float, width: float) -> Axes:
        box = (left / self.size[0], bottom / self.size[1], width / self.size[0], PANEL_INCHES / self.size[1])
        axes = self.figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes


def save_small(figure: Figure, path: Path) -> None:
    """As a PNG of 256 colours: noise doesn't compress, its palette does."""
    buffer = BytesIO()
    figure.savefig(buffer, dpi=100, format="png", facecolor=figure.get_facecolor())
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    run_command(main)
