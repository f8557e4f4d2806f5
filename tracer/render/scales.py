"""Token spaces of one picture put together: models with several scales have one heat map for each picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fxplain.attention.records import TokenSpace
from fxplain.errors import UnknownNameError
from fxplain.render.colours import Scale
from fxplain.render.readable import Explained
from fxplain.render.shown import Shown, shown


def together(result: Explained, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Token spaces in order; those that are scales of one picture are one group.

    Scales of one picture are born of the same input, and have rows and columns. Tokens that a mixing step
    makes of others are no scale: their relevance has been carried back to those already.
    """
    spaces = {space.name: space for space in result.spaces}
    groups: dict[tuple[str, int], list[str]] = {}
    for name in names:
        space = spaces[name]
        scale = space.origin == "input" and len(space.grid) == 2
        groups.setdefault((space.source, 2) if scale else (name, 0), []).append(name)
    return [tuple(group) for group in groups.values()]


def on_one_grid(result: Explained, names: Sequence[str], sample: int) -> Shown:
    """Several scales as one space with the finest grid.

    The relevance of a token is spread evenly over the part of the picture that it stands for, and that of all
    scales is added up. So no relevance is lost, and none is counted twice.
    """
    parts = [shown(result, name, sample) for name in names]
    if len(parts) == 1:
        own = parts[0]
        return Shown(own.space, np.where(own.aside, 0.0, own.values), own.aside, own.scale)
    finest = max(parts, key=lambda part: part.space.size).space
    rows, columns = finest.grid
    cells = sum(_spread(part, rows, columns) for part in parts)
    space = TokenSpace(finest.source, finest.size, finest.start, finest.grid, finest.origin, finest.source)
    values = np.asarray(cells).reshape(-1)
    return Shown(space, values, np.zeros(len(values), dtype=np.bool_), Scale.of(values))


def heat_map(result: Explained, name: str | None, sample: int) -> NDArray[np.float64]:
    """See :meth:`fxplain.Explanation.heat_map`.

    Raises:
        UnknownNameError: there is no such picture, or there are several.
    """
    flat = [space.name for space in result.spaces if len(space.grid) > 1 and space.origin == "input"]
    groups = {on_one_grid(result, names, sample).space.name: names for names in together(result, flat)}
    known = groups | {space: (space,) for space in flat if space not in groups}
    if name is None and len(groups) == 1:
        name = next(iter(groups))
    if name not in known:
        raise UnknownNameError(
            "there are several pictures" if name is None else "there is no such picture",
            expected=", ".join(map(repr, known)) or "an input whose tokens have rows and columns",
            found="no name" if name is None else repr(name),
        )
    part = on_one_grid(result, known[name], sample)
    return part.values.reshape(part.space.grid)


def sizes(result: Explained, names: Sequence[str]) -> str:
    """The grids of several scales in words."""
    grids = [space.grid for space in result.spaces if space.name in names]
    return f"{len(grids)} scales together: {', '.join(f'{rows} x {columns}' for rows, columns in grids)}"


def _spread(part: Shown, rows: int, columns: int) -> NDArray[np.float64]:
    values = np.where(part.aside, 0.0, part.values).astype(np.float64).reshape(part.space.grid)
    return shares(rows, values.shape[0]) @ values @ shares(columns, values.shape[1]).T


def shares(fine: int, coarse: int) -> NDArray[np.float64]:
    """[fine, coarse]: which part of each coarse cell of a line lies in each fine one.

    Example:
        >>> shares(4, 2)
        array([[0.5, 0. ],
               [0.5, 0. ],
               [0. , 0.5],
               [0. , 0.5]])
        >>> shares(3, 2).sum(0)
        array([1., 1.])
    """
    ends = np.linspace(0, 1, fine + 1)
    edges = np.linspace(0, 1, coarse + 1)
    low = np.maximum(ends[:-1, None], edges[None, :-1])
    high = np.minimum(ends[1:, None], edges[None, 1:])
    return np.asarray(np.clip(high - low, 0, None) * coarse)
