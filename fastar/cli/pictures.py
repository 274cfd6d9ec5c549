"""What a model draws, writes and sings, in a terminal and in a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text
from torch import Tensor

# Between pictures on a terminal: one column, and two rows of pixels, which are one line.
GAP_COLUMNS, GAP_ROWS = 1, 2


@dataclass(frozen=True)
class Sheet:
    """Pictures [N, H, W] of values from 0 to 1 under a heading, in rows of `columns`."""

    heading: str
    images: Tensor
    columns: int


@dataclass(frozen=True)
class Passage:
    """Lines of text under a heading."""

    heading: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Waves:
    """Signals [N, T] from -1 to 1 under a heading, one above the other."""

    heading: str
    signals: Tensor
    rate: int


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its name, and its value after each epoch from `first` on."""

    name: str
    values: Sequence[float]
    first: int = 1


@dataclass(frozen=True)
class Panel:
    """What belongs to one model: contents one above the other, and below them a chart of its curves."""

    contents: Sequence[Sheet | Passage | Waves]
    curves: Sequence[Curve]
    unit: str


def tile(images: Tensor, columns: int, gap_rows: int = GAP_ROWS, gap_columns: int = GAP_COLUMNS) -> Tensor:
    """Pictures [N, H, W] of values from 0 to 1, in rows of `columns`, as one [H', W']; the gaps are NaN."""
    count, height, width = images.shape
    rows = -(-count // columns)
    cells = images.new_full((rows * columns, height + gap_rows, width + gap_columns), torch.nan)
    cells[:count, :height, :width] = images
    whole = cells.view(rows, columns, *cells.shape[1:]).transpose(1, 2).reshape(rows * cells.shape[1], -1)
    return whole[: len(whole) - gap_rows, : whole.shape[1] - gap_columns]


def beside(left: Tensor, right: Tensor, gap: int) -> Tensor:
    """Two pictures of one height with `gap` columns between them."""
    return torch.cat([left, left.new_full((len(left), gap), torch.nan), right], 1)


def half_blocks(picture: Tensor, console: Console) -> Text:
    """A picture [H, W] of values from 0 to 1, NaN where nothing is drawn, as lines of half-block characters.

    Greys where the terminal has colours, else black and white; plain ASCII where its encoding has no blocks.
    """
    if len(picture) % 2:
        picture = torch.cat([picture, picture.new_full((1, picture.shape[1]), torch.nan)])
    text = Text(no_wrap=True, end="")
    for upper, lower in zip(picture[::2].tolist(), picture[1::2].tolist(), strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            if console.color_system is None:
                text.append(_glyph(top >= 0.5, bottom >= 0.5, console.options.ascii_only))
            else:
                text.append(*_grey_cell(top, bottom))
        text.append("\n")
    return text


def sparkline(signal: Tensor, console: Console) -> str:
    """A signal [T] from -1 to 1 as a line of T characters, by their height."""
    heights = " .:-=+*#" if console.options.ascii_only else "▁▂▃▄▅▆▇█"
    places = ((signal.clamp(-1, 1) + 1) / 2 * (len(heights) - 1)).round().long()
    return "".join(heights[k] for k in places.tolist())


def _glyph(top: bool, bottom: bool, ascii_only: bool) -> str:
    glyphs = " .'#" if ascii_only else " ▄▀█"
    return glyphs[2 * top + bottom]


def _grey_cell(top: float, bottom: float) -> tuple[str, Style | None]:
    if top != top:
        return (" ", None) if bottom != bottom else ("▄", Style(color=_grey(bottom)))
    return "▀", Style(color=_grey(top), bgcolor=None if bottom != bottom else _grey(bottom))


def _grey(value: float) -> Color:
    level = round(255 * value)
    return Color.from_rgb(level, level, level)


def write_png(out: Path, title: str, panels: Sequence[Panel]) -> None:
    """A PNG: the panels side by side, dark on light."""
    # Without pyplot, which would look for a display.
    figure = Figure(figsize=(5 * len(panels), 10.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    most = max(len(panel.contents) for panel in panels)
    grid = figure.add_gridspec(most + 1, len(panels))
    for column, panel in enumerate(panels):
        for row, content in enumerate(panel.contents):
            axes = figure.add_subplot(grid[row, column])
            axes.set_title(content.heading)
            _draw(axes, content)
        _chart(figure.add_subplot(grid[most, column]), panel.curves, panel.unit)
    figure.savefig(out, format="png")


def _draw(axes: Axes, content: Sheet | Passage | Waves) -> None:
    if isinstance(content, Sheet):
        picture = tile(content.images, content.columns, gap_rows=1, gap_columns=1).nan_to_num(0.15)
        axes.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
    elif isinstance(content, Passage):
        # A dollar sign of the text opens no formula.
        axes.text(
            0, 1, "\n".join(content.lines), transform=axes.transAxes, va="top", family="monospace", fontsize=7.5,
            parse_math=False,
        )  # fmt: skip
        axes.set_axis_off()
    else:
        count, length = content.signals.shape
        time = torch.arange(length) * (1000 / content.rate)
        for k, signal in enumerate(content.signals):
            axes.plot(time.numpy(), (signal + 2 * (count - 1 - k)).numpy(), color="black", linewidth=0.7)
        axes.set(xlabel="ms", yticks=[], xlim=(0, float(time[-1])), ylim=(-1.1, 2 * count - 0.9))
        axes.spines[["top", "right", "left"]].set_visible(False)


def write_chart(out: Path, title: str, curves: Sequence[Curve], unit: str) -> None:
    """A PNG of the curves over the epochs alone."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    _chart(figure.add_subplot(), curves, unit)
    figure.savefig(out, format="png")


def write_sheet(out: Path, images: Tensor, columns: int, zoom: int = 1) -> None:
    """A PNG of pictures [N, C, H, W] of values from 0 to 1, C being 1 or 3, in rows of `columns`, pixel by pixel."""
    channels = [tile(one, columns, gap_rows=1, gap_columns=1).nan_to_num(0.5) for one in images.unbind(1)]
    sheet = torch.stack([channels[0]] * 3 if len(channels) == 1 else channels, 2)
    imsave(out, sheet.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).numpy(), vmin=0, vmax=1, format="png")


def _chart(axes: Axes, curves: Sequence[Curve], unit: str) -> None:
    for curve in curves:
        axes.plot(range(curve.first, curve.first + len(curve.values)), curve.values, label=curve.name)
    axes.set(xlabel="epoch", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
