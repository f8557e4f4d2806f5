"""Sounds and series under their relevance as a figure of matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fxplain.display import Display, Series
from fxplain.render.picture import short, wrapped
from fxplain.render.readable import Explained
from fxplain.render.series.curves import channels, levels, spectrogram
from fxplain.render.series.track import along, drawn_part
from fxplain.render.shown import Shown, score_of, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WARM, COOL = "#f07a14", "#286edc"


def series_figure(result: Explained, display: Display) -> Figure | None:
    """For every sample and every space over a sound or a series: its relevance as bars, then what it lies
    over; None if there is none."""
    from matplotlib.figure import Figure

    found: list[tuple[str, Shown, Series]] = []
    for sample in range(result.batch):
        for name in result.relevance:
            series = display.line(name, sample)
            if series is not None:
                asked = display.question(result.questions, sample) or display.target_name(
                    result.target, sample
                )
                several = f"{display.caption(sample) or f'sample {sample}'}: " if result.batch > 1 else ""
                title = f"{several}{asked}, score {score_of(result, sample):.4g}"
                found.append((f"{wrapped(title, 110)}\n{name}", shown(result, name, sample), series))
    if not found:
        return None
    rows = [3 if series.sound else 2 for _, _, series in found]
    figure = Figure(
        figsize=(9, sum(rows) * 1.15 + 0.8 * len(rows)), dpi=120, facecolor="white", layout="constrained"
    )
    for part, (title, space, series) in zip(_parts(figure, rows), found, strict=True):
        axes = part.subplots(3 if series.sound else 2, 1, sharex=True)
        part.suptitle(short(title, 130), size=9, x=0.01, ha="left", parse_math=False)
        _drawn(list(np.atleast_1d(axes)), space, series)
    return figure


def _parts(figure: Figure, rows: list[int]) -> list[Any]:
    found = figure.subfigures(len(rows), 1, height_ratios=rows)
    return list(np.atleast_1d(np.asarray(found, dtype=object)))


def _drawn(axes: list[Axes], space: Shown, series: Series) -> None:
    first, last = drawn_part(series)
    line = along(space, series)
    edges = series.edges(len(line.values))
    values = np.where(line.aside, 0.0, line.values)
    colours = [COOL if value < 0 else WARM for value in values]
    axes[0].bar(edges[:-1], values, width=np.diff(edges), align="edge", color=colours)
    axes[0].set_ylabel("relevance", size=8)
    own = channels(series)
    at = series.start + (np.arange(len(own)) + (0.5 if series.step >= 1 else 0.0)) * series.step
    axes[1].plot(
        at, own[:, :12], linewidth=0.5 if series.sound else 1.2, color="#333" if own.shape[1] == 1 else None
    )
    axes[1].set_ylabel("sound" if series.sound else "value", size=8)
    _behind(axes[1], edges, line.scale.unit(values))
    if series.sound:
        grey = levels(spectrogram(series))
        pitch = 0.5 / series.step / 1000
        axes[2].imshow(grey, aspect="auto", cmap="Greys", extent=(first, last, 0, pitch), origin="upper")
        _behind(axes[2], edges, line.scale.unit(values))
        axes[2].set_ylabel("kHz", size=8)
    for one in axes:
        one.set_xlim(first, last)
        one.tick_params(labelsize=7)
    if series.names:
        every = max(-(-len(series.names) // 24), 1)
        shown_names = list(series.names)[::every]
        places = series.start + (np.arange(0, len(series.names), every) + 0.5) * series.step
        axes[-1].set_xticks(places, shown_names, rotation=45, ha="right", parse_math=False)
    axes[-1].set_xlabel(series.axis, size=8, parse_math=False)


def _behind(axes: Axes, edges: NDArray[Any], unit: NDArray[Any]) -> None:
    """The relevance as the colour behind a curve."""
    for left, right, value in zip(edges[:-1], edges[1:], unit, strict=True):
        if abs(value) > 0.01:
            colour = COOL if value < 0 else WARM
            axes.axvspan(left, right, color=colour, alpha=0.6 * abs(float(value)), linewidth=0)
