"""Methods by tokens: a row of coloured cells for each method, for inputs that are no pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fxplain.display import Display
from fxplain.render.colours import heat
from fxplain.render.picture import short, to_png
from fxplain.render.readable import Explained
from fxplain.render.shown import Shown, shown
from fxplain.render.words import pieces

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL, _LEFT, _GAP, _LABELS, _DPI = 0.3, 2.2, 0.45, 0.75, 130
"""Inches: side of a cell, room for the names of methods, gap between blocks, room for words."""
_MOST = 60
"""Tokens on one line."""


def heatmap_png(results: Mapping[str, Explained], display: Display) -> bytes:
    """The cells of :func:`heatmap_figure` as a PNG."""
    return to_png(heatmap_figure(results, display))


def heatmap_figure(results: Mapping[str, Explained], display: Display) -> Figure:
    """One block of cells for each sample and token space that any method gives relevance to."""
    first = next(iter(results.values()))
    blocks = []
    for sample in range(first.batch):
        for name in first.relevance:
            rows = [shown(result, name, sample) for result in results.values()]
            if not all(row.empty for row in rows):
                blocks.append((*_line(rows, display, sample), list(results)))
    return cells_figure(blocks)


Cells = tuple[str, list[str], NDArray[Any], list[str]]
"""Title, words, colours [row, word, 3] and names of the rows."""


def cells_figure(wide: Sequence[Cells]) -> Figure:
    """Blocks of cells one under the other; those with many words go on in lines of their own."""
    from matplotlib.figure import Figure

    blocks: list[Cells] = [
        (title, words[start : start + _MOST], cells[:, start : start + _MOST], names)
        for title, words, cells, names in wide
        for start in range(0, len(words), _MOST)
    ]
    height = sum(len(names) * _CELL + _LABELS + _GAP for *_, names in blocks) + _GAP
    width = _LEFT + _CELL * max((len(words) for _, words, _, _ in blocks), default=1) + _GAP
    figure = Figure(figsize=(max(width, 6.0), max(height, 1.0)), dpi=_DPI, facecolor="white")
    top = height
    for title, words, cells, names in blocks:
        top -= _GAP + len(names) * _CELL
        box = (_LEFT / figure.get_figwidth(), top / height)
        size = (_CELL * len(words) / figure.get_figwidth(), len(names) * _CELL / height)
        _draw(figure.add_axes((*box, *size)), cells, [short(name, 34) for name in names], words, title)
        top -= _LABELS
    return figure


def _line(rows: Sequence[Shown], display: Display, sample: int) -> tuple[str, list[str], NDArray[Any]]:
    """Title, words and colours [method, token, 3] of one space."""
    space = rows[0].space
    texts = display.texts(space.name, sample, space.size)
    words = [str(number) for number in range(space.size)]
    if texts is not None:
        spelled = [piece.text for piece in pieces(list(texts)[: space.size])]
        words[: len(spelled)] = spelled
        words = words[: len(spelled)]
    colours = []
    for row in rows:
        colour, _ = heat(row.scale, row.scale.unit(row.values))
        colours.append(np.where(row.aside[:, None], 0.85, colour)[: len(words)])
    cells = np.stack(colours)
    title = f"{display.caption(sample) or f'sample {sample}'} · {space.name}"
    return title, words, cells


def _draw(axes: Axes, cells: NDArray[Any], methods: list[str], words: list[str], title: str) -> None:
    axes.imshow(cells, aspect="auto", interpolation="nearest")
    axes.set_title(short(title, 90), size=8, color="#222", loc="left", parse_math=False)
    axes.set_yticks(range(len(methods)), methods, size=7, color="#222", parse_math=False)
    axes.set_xticks(
        range(len(words)),
        [short(word, 10) for word in words],
        size=6.5,
        rotation=60,
        ha="right",
        color="#222",
    )
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(0.5, len(words) - 0.5), minor=True)
    axes.set_yticks(np.arange(0.5, len(methods) - 0.5), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
