"""Heads' maps made small enough for a page: coarser where they are many, in 256 steps, and compressed."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxplain.render.colours import to_array

MOST = 16 << 20
"""Cells of all maps of a page; more, and several tokens share a cell."""
SIDES = (4096, 256, 192, 128, 96, 64, 48, 32, 24, 16)
"""Most cells along one side of a map, by the room there is."""


@dataclass(frozen=True)
class Packed:
    """The maps of one attention, as the page reads them."""

    heads: int
    rows: int
    columns: int
    per_row: int
    """Queries in a cell; of several the largest weight is kept."""
    per_column: int
    weights: str
    """Compressed bytes [head, row, column] in base64: 255 is the head's largest."""
    largest: tuple[float, ...]
    """By head."""
    weighed: str = ""
    """The same, times the gradient, what is negative left out; '' without gradients."""
    largest_weighed: tuple[float, ...] = ()


def side_for(sizes: Iterable[tuple[int, int, int]], times: int = 1) -> int:
    """How many cells a side of a map may have, so that all maps of (heads, queries, keys) fit on the page.

    Args:
        times: maps that are kept of each: 2 with gradients.

    Example:
        >>> side_for([(12, 50, 50)] * 12), side_for([(12, 1024, 1024)] * 48)
        (4096, 128)
    """
    every = list(sizes)
    for side in SIDES:
        cells = sum(heads * min(queries, side) * min(keys, side) for heads, queries, keys in every)
        if cells * times <= MOST:
            return side
    return SIDES[-1]


def packed(weights: Tensor, weighed: Tensor | None, side: int) -> Packed:
    """Pack the maps [head, query, key] of one attention, ``weighed`` beside them.

    Example:
        >>> found = packed(torch.eye(4)[None], None, 2)
        >>> (found.rows, found.per_row, found.largest, unpacked(found)[0].tolist())
        (2, 2, (1.0,), [[255, 0], [0, 255]])
    """
    heads, queries, keys = weights.shape
    per_row, per_column = (-(-size // side) if size else 1 for size in (queries, keys))
    rows, columns = -(-queries // per_row), -(-keys // per_column)
    own = _compressed(weights, per_row, per_column)
    more: tuple[str, tuple[float, ...]] = ("", ())
    if weighed is not None:
        more = _compressed(weighed, per_row, per_column)
    return Packed(heads, rows, columns, per_row, per_column, *own, *more)


def unpacked(found: Packed) -> np.ndarray[Any, Any]:
    """The cells [head, row, column] again, as bytes."""
    data = zlib.decompress(base64.b64decode(found.weights))
    return np.frombuffer(data, np.uint8).reshape(found.heads, found.rows, found.columns)


def _compressed(weights: Tensor, per_row: int, per_column: int) -> tuple[str, tuple[float, ...]]:
    values = weights.detach().float().clamp_min(0)
    if per_row > 1 or per_column > 1:
        shape, strides = (per_row, per_column), (per_row, per_column)
        values = torch.nn.functional.max_pool2d(values[:, None], shape, strides, ceil_mode=True)[:, 0]
    largest = values.flatten(1).amax(1) if values[0].numel() else values.new_zeros(len(values))
    scale = torch.where(largest > 0, largest, 1.0)[:, None, None]
    cells = to_array((values / scale * 255).round().to(torch.uint8))
    data = base64.b64encode(zlib.compress(cells.tobytes(), 9)).decode("ascii")
    return data, tuple(float(f"{most:.4g}") for most in largest.tolist())
