"""Places of one sequence that are taken for one token, though they hold different things."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from fxplain.labels.call import Call
from fxplain.labels.labels import Slot, codes_of
from fxplain.labels.value import Operand

CLOSE = 1e-5
"""Copies differ by no more than this part of the largest value."""


def note_repeated(call: Call, values: Operand, slot: Slot, axis: int) -> None:
    """Write down tokens that stand at several places along an axis with another content at each.

    A key that a query has twice (a neighbour in two blocks) holds the same both times; queries of a parameter
    that have read a frame each do not.
    """
    size = values.shape[axis]
    if size < 2 or not _repeated(slot.labels, axis):
        return
    labels, numbers = (
        t.movedim(axis, -1).reshape(-1, size)
        for t in (slot.labels.expand(values.shape), values.tensor.detach().cpu())
    )
    labels, order = labels.sort(dim=-1, stable=True)
    numbers = numbers.gather(-1, order)
    gap = (numbers[:, 1:] - numbers[:, :-1]).abs()
    apart = _alike(labels) & (gap > CLOSE * numbers.abs().max())
    call.ledger.tokens.repeated |= set(codes_of(labels[:, 1:][apart]).tolist())


def note_shared_rows(call: Call, rows: Slot, shape: Sequence[int], axes: Iterable[int]) -> None:
    """Write down tokens that all rows of a map along an axis are of; the rows lie on the map."""
    if any(shape[axis] > 1 and not rows.varies(axis) for axis in axes):
        codes = codes_of(rows.labels)
        call.ledger.tokens.shared_rows |= set(codes[codes >= 0].tolist())


def note_padding(call: Call, rows: Slot, cols: Slot, weights: Callable[[], Tensor]) -> None:
    """Write down that places that are no tokens, such as padding with zeros, have weight for some query."""
    padding = codes_of(cols.labels) < 0
    if bool(padding.any()) and not bool(padding.all()):
        map = weights()
        weigh = map.is_meta or bool(((map.cpu() != 0) & padding & (codes_of(rows.labels) >= 0)).any())
        if weigh:
            call.ledger.remarks.padding_weighed[call.node] = None


def _repeated(labels: Tensor, axis: int) -> bool:
    """Whether a token stands at several places along an axis."""
    return labels.shape[axis] == 1 or bool(_alike(labels.movedim(axis, -1).sort(-1).values).any())


def _alike(ordered: Tensor) -> Tensor:
    return (ordered[..., 1:] == ordered[..., :-1]) & (codes_of(ordered[..., 1:]) >= 0)
