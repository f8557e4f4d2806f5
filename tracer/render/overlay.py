"""The relevance of image tokens, laid over the image they came from."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxplain.display import Display, Laid, Picture
from fxplain.render.colours import Scale, heat
from fxplain.render.marks import Mark, marks_of
from fxplain.render.readable import Explained
from fxplain.render.scales import on_one_grid, sizes, together
from fxplain.render.shown import Shown, shown

_SHORTEST_SIDE = 336
"""Smaller pictures are enlarged, so that the overlay does not show their pixels' size but the map's."""


@dataclass(frozen=True, eq=False)
class Overlay:
    """One drawn map: the picture, the picture under the map (both uint8 [H, W, 3]) and its scale."""

    space: str
    label: str
    """Which frame of a video, a remark on the layout, or ''."""
    frame: bool
    """Whether it is one of several frames."""
    picture: Picture
    blended: Picture
    scale: Scale
    spaces: tuple[str, ...] = ()
    """All token spaces that it shows: those of several scales are one map."""
    marks: tuple[Mark, ...] = ()
    """Boxes and outlines of what was asked."""


def overlays(result: Explained, display: Display, sample: int) -> list[Overlay]:
    """All overlays of one sample: every picture that ``display`` has, frame by frame; scales of one picture
    are put together."""
    pictured = [name for name in result.relevance if display.image(name, sample) is not None]
    groups = together(result, pictured)
    found: list[Overlay] = []
    for names in groups:
        picture = display.image(names[0], sample)
        assert picture is not None
        several = len(names) > 1
        space = on_one_grid(result, names, sample) if several else shown(result, names[0], sample)
        drawn = _of_space(space, picture, display, sample, names[0])
        remark = sizes(result, names) if several else ""
        found += [replace(one, spaces=names, label=one.label or remark) for one in drawn]
    for name in result.relevance:
        found += _of_laid(shown(result, name, sample), display, display.laid.get(name, ()))
    marks = marks_of(result, display, sample) if len(groups) == 1 else ()
    return [replace(one, marks=marks) for one in found]


def _of_space(space: Shown, picture: Picture, display: Display, sample: int, name: str) -> list[Overlay]:
    look, part = display.look, display.part(name, sample)
    # an own entry set aside would be the brightest spot of all: draw nothing there
    values = np.where(space.aside, 0.0 if space.scale.signed else space.scale.low, space.values)
    grid, remark = as_grid(values, space.space.grid, picture)
    if grid is None:
        return []
    frames = picture if picture.ndim == 4 else picture[None]
    scale = replace(space.scale, colours=look.colours, opacity=look.opacity, stretch=look.stretch)
    drawn = []
    for step, cells in enumerate(grid):
        # grids of videos are often coarser in time than the frames: take the frame in the step's middle
        still = enlarge(frames[int((step + 0.5) * len(frames) / len(grid))])
        several = len(grid) > 1
        label = display.frame(name, step, len(grid)) if several else remark
        blended = blend(still, cells, scale, look.bare)
        height, width = (max(round(side * own), 1) for side, own in zip(still.shape, part, strict=False))
        seen = still[:height, :width], blended[:height, :width]
        drawn.append(Overlay(space.space.name, label, several, *seen, scale))
    return drawn


def _of_laid(space: Shown, display: Display, pictures: Sequence[Laid]) -> list[Overlay]:
    """One overlay for each of several pictures that share a space, in one scale."""
    look, name = display.look, space.space.name
    values = np.where(space.aside, 0.0 if space.scale.signed else space.scale.low, space.values)
    scale = replace(space.scale, colours=look.colours, opacity=look.opacity, stretch=look.stretch)
    found = []
    for place, one in enumerate(pictures, 1):
        still = enlarge(one.picture)
        label = f"picture {place}" if len(pictures) > 1 else ""
        drawn = blend(still, values[one.tokens], scale, look.bare)
        found.append(Overlay(name, label, len(pictures) > 1, still, drawn, scale, (name,)))
    return found


def plain_map(space: Shown) -> list[Picture]:
    """A space with rows and columns but no picture: its map alone, one square per token, frame by frame."""
    grid = space.values.reshape(-1, *space.space.grid[-2:])
    return [enlarge(_paint(space.scale, cells), 112) for cells in grid]


def _paint(scale: Scale, cells: NDArray[Any]) -> Picture:
    colour, _ = heat(scale, scale.unit(cells))
    return np.asarray(np.rint(colour * 255.0), dtype=np.uint8)


def as_grid(values: NDArray[Any], grid: tuple[int, ...], picture: Picture) -> tuple[NDArray[Any] | None, str]:
    """Values [tokens] as frames [T, h, w], and a remark where the layout had to be guessed.

    Tokens without rows and columns (patches flattened before they were embedded) are laid out in rows,
    as flattening does, if exactly one such layout has the picture's proportions; else there is no grid.
    """
    if len(grid) == 2:
        return values.reshape(1, *grid), ""
    if len(grid) == 3:
        return values.reshape(grid), ""
    height, width = picture.shape[-3], picture.shape[-2]
    columns = round(float(np.sqrt(len(values) * width / height)))
    if columns < 2 or len(values) % columns:
        return None, ""
    rows = len(values) // columns
    if rows < 2 or abs(np.log((columns / rows) / (width / height))) > 0.1:
        return None, ""
    return values.reshape(1, rows, columns), f"tokens laid out as {rows} x {columns}"


def enlarge(picture: Picture, side: int = _SHORTEST_SIDE) -> Picture:
    """Repeat the pixels of a small picture a whole number of times, until its sides reach ``side``."""
    times = -(-side // min(picture.shape[:2]))
    return np.repeat(np.repeat(picture, times, axis=0), times, axis=1) if times > 1 else picture


def upsample(cells: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """A map [h, w] at the picture's size [height, width], bilinear between the centres of its cells."""
    from PIL import Image

    small = Image.fromarray(np.asarray(cells, dtype=np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def blend(picture: Picture, cells: NDArray[Any], scale: Scale, bare: bool = False) -> Picture:
    """The map [h, w] over the picture [H, W, 3]: the more relevant, the more opaque; or the map alone.

    Example:
        >>> white = np.full((4, 4, 3), 255, dtype=np.uint8)
        >>> blend(white, np.ones((2, 2)), Scale.of(np.ones(4))).shape
        (4, 4, 3)
    """
    unit = upsample(scale.unit(cells), picture.shape[0], picture.shape[1])
    colour, opacity = heat(scale, unit)
    if bare:
        return np.asarray(np.rint(colour * 255.0), dtype=np.uint8)
    # the picture loses some of its own colour, so that bright colours mean relevance
    pixels = picture[..., :3].astype(np.float64) / 255.0
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    muted = 0.55 * pixels + 0.45 * grey[..., None]
    mixed = muted + (colour - muted) * opacity[..., None]
    return np.asarray(np.rint(np.clip(mixed, 0.0, 1.0) * 255.0), dtype=np.uint8)


def png(picture: Picture) -> bytes:
    """A picture as a PNG file's content."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(picture: Picture) -> str:
    """A picture as a ``data:`` address, for pages that load nothing."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")
