"""One PNG for the whole result: every sample's picture, its overlays, colour bars and titles."""

from __future__ import annotations

import io
import textwrap
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fxplain.display import Display, Picture
from fxplain.errors import OutputError
from fxplain.render.colours import Scale, heat, number
from fxplain.render.marks import Mark
from fxplain.render.overlay import overlays
from fxplain.render.readable import Explained
from fxplain.render.shown import score_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
_PANEL, _BAR, _GAP, _LINE, _HEAD = 3.3, 0.62, 0.18, 0.17, 0.6
"""Inches: side of a panel, room for its colour bar, gap, a line of its title, head of the page."""
_DPI = 130


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture with its title and colour bar."""

    picture: Picture
    title: str
    scale: Scale | None
    """None for the untouched picture."""
    marks: tuple[Mark, ...] = ()


def picture_figure(result: Explained, display: Display) -> Figure | None:
    """The overlays of all samples, upright and to scale; None if there is no picture to draw on."""
    rows: list[list[Panel]] = []
    for sample in range(result.batch):
        panels = _panels(result, display, sample)
        rows.extend(panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS))
    return figure_of(rows, _head(result, display)) if rows else None


def picture_png(result: Explained, display: Display) -> bytes:
    """The overlays of all samples as one PNG.

    Raises:
        OutputError: there is no picture to draw on.
    """
    figure = picture_figure(result, display)
    if figure is None:
        raise OutputError(
            "there is no picture to draw the relevance on",
            expected="Display(images={token space: [uint8 H x W x 3, ...]}) for an image or video input",
            found=f"pictures for {', '.join(display.images) or 'no token space'}; "
            f"token spaces {', '.join(result.relevance)}",
            hint="save as .html for coloured text and bars, or pass the pictures in display",
        )
    return to_png(figure)


def _head(result: Explained, display: Display) -> str:
    lines = [short(display.title, 80)] if display.title else []
    lines.append(
        f"{result.method} · output {result.output} · graph and model differ by {result.verified:.0e}"
    )
    return "\n".join(lines)


def _panels(result: Explained, display: Display, sample: int) -> list[Panel]:
    drawn = overlays(result, display, sample)
    panels: list[Panel] = []
    asked = (
        display.question(result.questions, sample) or f"target {display.target_name(result.target, sample)}"
    )
    what = f"{wrapped(asked)}\nscore {number(score_of(result, sample))}"
    several = len({overlay.space for overlay in drawn}) > 1
    seen: set[str] = set()
    for overlay in drawn:
        # a video's frames lie under their own maps; a still picture is also shown untouched
        if overlay.space not in seen and not overlay.frame:
            panels.append(Panel(overlay.picture, display.caption(sample) or f"sample {sample}", None))
        seen.add(overlay.space)
        title = "\n".join(filter(None, (what, overlay.space if several else "", overlay.label)))
        panels.append(Panel(overlay.blended, title, overlay.scale, overlay.marks))
    return panels


def figure_of(rows: list[list[Panel]], head: str) -> Figure:
    """Rows of panels under a head."""
    from matplotlib.figure import Figure

    cell = _PANEL + _BAR + _GAP
    width = max(len(row) for row in rows) * cell + _GAP
    titles = [_GAP + _LINE * max(panel.title.count("\n") + 1 for panel in row) for row in rows]
    height = _HEAD + sum(titles) + len(rows) * _PANEL + _GAP
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    figure.text(_GAP / width, 1 - 0.12 / height, head, va="top", size=11, color="#222", parse_math=False)
    top = height - _HEAD
    for row, room in zip(rows, titles, strict=True):
        top -= room + _PANEL
        for c, panel in enumerate(row):
            _draw(figure, panel, (_GAP + c * cell) / width, top / height, _PANEL / width, _PANEL / height)
    return figure


def _draw(figure: Figure, panel: Panel, left: float, bottom: float, width: float, height: float) -> None:
    axes = figure.add_axes((left, bottom, width, height))
    axes.imshow(panel.picture)
    axes.set_axis_off()
    axes.set_anchor("NW")
    axes.set_title(short(panel.title, 56), size=9, color="#222", loc="left", parse_math=False)
    for mark in panel.marks:
        _mark(axes, mark, panel.picture.shape[1], panel.picture.shape[0])
    if panel.scale is not None:
        # the picture is narrower or lower than its panel: the bar follows the picture
        axes.apply_aspect()
        box = axes.get_position()
        unit = width / _PANEL
        _bar(figure.add_axes((box.x1 + 0.07 * unit, box.y0, 0.13 * unit, box.height)), panel.scale)


def _mark(axes: Axes, mark: Mark, width: int, height: int) -> None:
    """A box or an outline with its name; a dark edge keeps it apart from any picture."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    edge = [withStroke(linewidth=3.2, foreground="#000000")]
    if mark.box:
        left, top, right, bottom = mark.box
        corner = (left * width - 0.5, top * height - 0.5)
        sides = ((right - left) * width, (bottom - top) * height)
        drawn: Any = Rectangle(corner, *sides, fill=False, edgecolor=mark.colour, linewidth=1.6)
        axes.add_patch(drawn)
    else:
        ends = [
            ((a * width - 0.5, b * height - 0.5), (c * width - 0.5, d * height - 0.5))
            for a, b, c, d in mark.lines
        ]
        drawn = LineCollection(ends, colors=mark.colour, linewidths=1.6)
        axes.add_collection(drawn)
    drawn.set_path_effects(edge)
    drawn.set_clip_on(True)
    left, top = mark.corner
    axes.text(
        min(left, 0.95) * width,
        min(top, 0.98) * height,
        short(mark.text, 28),
        size=7,
        color=mark.colour,
        va="bottom" if top > 0.08 else "top",
        clip_on=True,
        path_effects=[withStroke(linewidth=2.2, foreground="#000000")],
        parse_math=False,
    )


def _bar(axes: Axes, scale: Scale) -> None:
    steps = np.linspace(-1.0 if scale.signed else 0.0, scale.reach, 256)
    colour, _ = heat(scale, steps)
    axes.imshow(colour[:, None, :], aspect="auto", origin="lower")
    low, high = (float(end) for end in scale.ends)
    ticks = [(0.0, low), (127.5, (low + high) / 2), (255.0, high)]
    if scale.constant:
        ticks = [(127.5, low)]
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([at for at, _ in ticks], [f"{value:.2g}" for _, value in ticks], size=7, color="#222")
    axes.tick_params(length=2, pad=2)


def wrapped(text: str, width: int = 44) -> str:
    """A sentence in lines that fit above a panel."""
    return textwrap.fill(text, width)


def short(text: str, most: int) -> str:
    """Every line cut to ``most`` letters."""
    lines = [line if len(line) <= most else line[: most - 1] + "…" for line in text.splitlines()]
    return "\n".join(lines)


def to_png(figure: Figure) -> bytes:
    """A figure as a PNG file's content."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # letters the font lacks are drawn as boxes: no reason to fail or to warn
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()
