"""One map for several rows of a grid: scores are summed over them, and the map weighs the values of each.

So attend the aligned sequences of a family together (tied row attention). The scores of column i and column j
are of all tokens of these columns; labels name those of the first row. Where the map multiplies values, every
row gets its own: the token of row r in column i reads those of row r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxplain.labels.labels import Slot, codes_of, compact, encode, samples_of
from fxplain.ops.meeting.sides import Side
from fxplain.ops.reading import moved

SHARED = "one map for all rows of a grid"


@dataclass(frozen=True)
class SharedMap:
    """A map for the rows that it is for: its letters, and labels on them."""

    letters: str
    shape: tuple[int, ...]
    rows: Slot
    cols: Slot


def shared_scores(left: Side, right: Side) -> list[Slot] | None:
    """The slots of a product that sums over rows of a grid what tokens of all columns are to those of all
    others; None where it is no such product."""
    one, other = left.summed_out[0], right.summed_out[0]
    apart = _own_columns(one, left, right) and _own_columns(other, right, left)
    same = set(left.over(one)) & set(right.over(other))
    return [left.laid(one), right.laid(other)] if apart and same else None


def _own_columns(slot: Slot, side: Side, other: Side) -> bool:
    """Whether tokens lie along an axis that the other operand lacks."""
    return any(
        letter in side.output and letter not in other.letters and axis in slot.token_axes
        for axis, letter in enumerate(side.letters)
    )


def shared_sum(slots: Sequence[Slot], axes: Sequence[int]) -> list[Slot] | None:
    """The slots of scores that are summed over rows of a grid; None where it is no such sum."""
    if len(slots) != 2 or any(not (slot.token_axes & set(axes)) for slot in slots):
        return None
    columns = [slot.token_axes - set(axes) for slot in slots]
    if not all(columns) or columns[0] & columns[1]:
        return None
    return [replace(slot, labels=_first(slot.labels, axes)) for slot in slots]


def _first(labels: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        labels = labels.narrow(axis, 0, min(1, labels.shape[axis]))
    return compact(labels)


def over_rows(weights: Side, values: Side, rows: Slot) -> SharedMap | None:
    """The map of such scores over the rows of the values; None where the values are of no such grid."""
    if not (weights.operand.value.gave_way.shared_map and values.summed_out):
        return None
    ours, column = values.summed_out[0], values.over(values.summed_out[0])
    free = [c for axis, c in enumerate(values.letters) if ours.varies(axis) and c in values.output]
    lines = [c for c in free if c not in weights.letters or not rows.varies(weights.letters.index(c))]
    lines = [c for c in lines if values.letters.index(c) in ours.token_axes]
    if len(lines) != 1 or len(column) != 1:
        return None
    (row,) = lines
    letters = weights.letters if row in weights.letters else row + weights.letters
    found = _rows_of(rows, moved(ours.labels, values.letters, row + column), letters, row)
    size = values.operand.shape[values.letters.index(row)]
    shape = tuple(weights.operand.shape) if row in weights.letters else (size, *weights.operand.shape)
    cols = replace(ours, labels=moved(ours.labels, values.letters, letters))
    return None if found is None else SharedMap(letters, shape, replace(rows, labels=found), cols)


def _rows_of(rows: Slot, grid: Tensor, letters: str, row: str) -> Tensor | None:
    """The labels of the map's rows with those of each row of the grid [row, column] for its first."""
    codes = codes_of(grid)
    labels = rows.labels if rows.labels.ndim == len(letters) else rows.labels.unsqueeze(0)
    ordered, order = codes[0].sort()
    own = codes_of(labels)
    place = torch.searchsorted(ordered, own).clamp_max(len(ordered) - 1)
    if not torch.equal(ordered[place], own):
        return None
    axis = letters.index(row)
    each = codes[:, order[place]]  # [row of the grid, *labels], where the axis of the row has size 1
    return compact(encode(samples_of(labels), each.movedim(0, axis + 1).squeeze(axis)))
