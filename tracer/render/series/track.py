"""One line of tokens over what it was made from: a sound with its spectrogram, or a series, and an axis."""

from __future__ import annotations

import base64
import io
import wave
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxplain.display import Display, Series
from fxplain.render.colours import Scale, number
from fxplain.render.overlay import enlarge, png, upsample
from fxplain.render.readable import Explained
from fxplain.render.series.curves import levels, outlines, spectrogram, ticks
from fxplain.render.shown import Shown, shown

_MOST_CELLS = 600
"""Of more tokens several share a cell, which has the strongest of them."""
_LONGEST = 90.0
"""Seconds of a sound that a page holds to be heard."""


@dataclass(frozen=True)
class Cell:
    """One token, or several neighbours where there are very many, between two places of the axis."""

    left: float
    """Percent of the drawn part of the axis."""
    width: float
    strength: str
    """0 to 1, as CSS writes it."""
    style: str
    """Classes: ``neg``, ``own``, ``hot``."""
    tip: str


@dataclass(frozen=True)
class Lanes:
    """The sound or series itself, as it is drawn and heard."""

    lines: tuple[str, ...]
    """SVG paths in a box of 1000 x 100: a filled wave, or a line for each channel."""
    filled: bool
    spectrogram: str = ""
    """``data:`` address of the loudness of every pitch, grey and see-through."""
    over: str = ""
    """``data:`` address of the relevance on the spectrogram, for tokens that have a pitch."""
    sound: str = ""
    """``data:`` address to be heard."""


@dataclass(frozen=True)
class Track:
    """One space of one sample as a page draws it over its sound or series."""

    space: str
    axis: str
    about: str
    lanes: Lanes
    ticks: tuple[tuple[float, str], ...]
    """Percent of the drawn part, and what stands there."""
    cells: tuple[Cell, ...]
    scale: Scale
    behind: str = ""
    """What lies behind the end, on padding."""
    own: bool = False


def tracks(result: Explained, display: Display, sample: int) -> list[Track]:
    """Every space of one sample that lies over a sound or a series."""
    found = []
    for name in result.relevance:
        series = display.line(name, sample)
        if series is not None:
            space = shown(result, name, sample)
            found.append(track_of(replace(space, scale=_stretched(space.scale, display)), series))
    return found


def _stretched(scale: Scale, display: Display) -> Scale:
    return replace(scale, stretch=display.look.stretch)


def track_of(space: Shown, series: Series) -> Track:
    """A space over its series."""
    over_time = along(space, series)
    first, last = drawn_part(series)
    edges = series.edges(len(over_time.values))
    inside = edges[:-1] < last - 1e-9 * max(abs(last), 1.0)
    empty = drawing(series)
    over = _over(space, series) if len(space.space.grid) > 1 else ""
    whole = float(np.abs(np.where(over_time.aside, 0.0, over_time.values)).sum())
    outside = float(np.abs(over_time.values[~inside & ~over_time.aside]).sum())
    behind = ""
    if not inside.all():
        share = outside / whole if whole else 0.0
        behind = (
            f"{int((~inside).sum())} tokens lie behind the end, on padding, with {share:.1%} of the relevance"
        )
    return replace(
        empty,
        space=space.space.name,
        cells=_cells(over_time, edges, inside, series, (first, last)),
        scale=over_time.scale,
        lanes=replace(empty.lanes, over=over),
        behind=behind,
        own=bool(over_time.aside.any()),
    )


def drawing(series: Series, space: str = "") -> Track:
    """What is drawn of a series, without relevance."""
    first, last = drawn_part(series)
    heard = series.sound and last - first <= _LONGEST
    size = f"{len(series.values)} places" if not series.sound else f"{last - first:.2f} seconds"
    return Track(
        space=space,
        axis=series.axis,
        about=size,
        lanes=Lanes(
            outlines(series),
            series.sound,
            spectrogram=_spectrogram(series) if series.sound else "",
            sound=_sound(series) if heard else "",
        ),
        ticks=ticks(series),
        cells=(),
        scale=Scale(0.0, 0.0, signed=False),
    )


def drawn_part(series: Series) -> tuple[float, float]:
    """Where on the axis the drawing begins and ends: padding is never drawn."""
    return series.ends


def along(space: Shown, series: Series) -> Shown:
    """The space with its tokens along the series alone: those across are added up."""
    grid = space.space.grid
    if len(grid) < 2:
        return space
    own = series.along(grid)
    others = tuple(axis for axis in range(len(grid)) if axis != own)
    values = np.where(space.aside, 0.0, space.values).reshape(grid).sum(others)
    flat = replace(space.space, size=len(values), grid=(len(values),))
    return Shown(flat, values, np.zeros(len(values), dtype=np.bool_), Scale.of(values))


def _cells(
    space: Shown, edges: NDArray[Any], inside: NDArray[Any], series: Series, drawn: tuple[float, float]
) -> tuple[Cell, ...]:
    first, last = drawn
    unit = space.scale.unit(space.values)
    places = np.flatnonzero(inside)
    found = []
    for group in np.array_split(places, min(len(places), _MOST_CELLS)) if len(places) else []:
        one = int(group[np.argmax(np.abs(unit[group]))])  # a mean would hide the strongest
        left, right = (min(max(float(edges[i]), first), last) for i in (group[0], group[-1] + 1))
        own = bool(space.aside[one])
        strength = 0.0 if own else float(unit[one])
        classes = [("own", own), ("neg", strength < 0), ("hot", abs(strength) >= 0.7)]
        where = series.stretch(float(edges[one]), float(edges[one + 1]))
        remark = "\nthis row was read: its own entry is not coloured" if own else ""
        found.append(
            Cell(
                round((left - first) / (last - first) * 100, 3),
                round((right - left) / (last - first) * 100, 3),
                f"{abs(strength):.3f}",
                " ".join(name for name, wanted in classes if wanted),
                f"{where}: {number(float(space.values[one]))}\ntoken {one}{remark}",
            )
        )
    return tuple(found)


def _over(space: Shown, series: Series) -> str:
    """The relevance of tokens with time and pitch, as a layer over the spectrogram."""
    grid = space.space.grid
    own = series.along(grid)
    cells = np.where(space.aside, 0.0, space.values).reshape(-1, *grid[-2:]).sum(0)
    cells = cells if own == len(grid) - 1 else cells.T
    _, last = drawn_part(series)
    begin, end = series.covers or series.ends
    kept = max(round(cells.shape[1] * (last - begin) / (end - begin)), 1)
    unit = upsample(Scale.of(cells).unit(cells[:, :kept]), 160, 640)[::-1]  # low pitches lie at the bottom
    colour = np.where(unit[..., None] < 0, (40, 110, 220), (240, 122, 20))
    layer = np.concatenate([colour, np.abs(unit)[..., None] * 200], -1)
    return _address(np.asarray(np.rint(layer), dtype=np.uint8))


def _spectrogram(series: Series) -> str:
    grey = levels(spectrogram(series))
    layer = np.full((*grey.shape, 4), 118, dtype=np.uint8)
    layer[..., 3] = np.rint(grey * 255)
    return _address(enlarge(layer, 1))


def _address(picture: NDArray[Any]) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


def _sound(series: Series) -> str:
    """The sound as a .wav of 16 bits."""
    whole = np.asarray(np.rint(np.clip(series.values, -1, 1) * 32767), dtype="<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, round(1 / series.step), 0, "NONE", ""))
        file.writeframes(whole.tobytes())
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
