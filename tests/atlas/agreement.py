"""How a map that a model reports agrees with those that fxplain finds: by value, or why it does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SAME_MAP = 1e-5
"""Largest difference between two maps that are the same."""


def match(theirs: Tensor, maps: Sequence[Tensor], left: Sequence[int]) -> tuple[str, int | None]:
    """How a reported map agrees with one of ours, and with which."""
    theirs = theirs.detach()
    for how, same in _AGREEMENTS.items():
        for place in left:
            if same(theirs, maps[place].detach().to(theirs.dtype)):
                return how, place
    return "no map" if is_no_map(theirs, maps) else "differs", None


def _equal(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=0, atol=SAME_MAP)


def _for_all(theirs: Tensor, ours: Tensor) -> bool:
    """Of a picture that the model takes out of a packed row: known of no sample, and so it is each one's."""
    return theirs.ndim == 4 and len(theirs) == 1 and _equal(theirs.expand(len(ours), -1, -1, -1), ours)


def _same_entries(theirs: Tensor, ours: Tensor) -> bool:
    a, b = (torch.sort(t[t != 0]).values for t in (theirs, ours))
    return a.numel() > 0 and a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=SAME_MAP)


def _before_softmax(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.ndim == 4 and _equal(theirs.softmax(-1), ours)


def _transposed(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.ndim == 4 and _equal(theirs.mT, ours)


def _block(theirs: Tensor, ours: Tensor) -> bool:
    """The first or the last rows and columns of our map."""
    if theirs.ndim != 4 or theirs.shape[:2] != ours.shape[:2] or theirs.numel() >= ours.numel():
        return False
    rows, columns = theirs.shape[2:]
    if rows > ours.shape[2] or columns > ours.shape[3]:
        return False
    corners = (ours[..., :rows, :columns], ours[..., -rows:, -columns:])
    return any(torch.allclose(theirs, corner, rtol=0, atol=SAME_MAP) for corner in corners)


def _more_columns(theirs: Tensor, ours: Tensor) -> bool:
    """All our columns in their order, and others between or after them."""
    if theirs.shape[:-1] != ours.shape[:-1] or theirs.shape[-1] <= ours.shape[-1]:
        return False
    rest = iter(theirs.unbind(-1))
    return all(
        any(torch.allclose(column, wanted, rtol=0, atol=SAME_MAP) for column in rest)
        for wanted in ours.unbind(-1)
    )


def _more_places(theirs: Tensor, ours: Tensor) -> bool:
    """A square map with our rows and columns in their order, and places side by side that are no tokens."""
    rows, columns = ours.shape[-2:]
    if theirs.ndim != 4 or theirs.shape[:2] != ours.shape[:2] or theirs.shape[-1] != theirs.shape[-2]:
        return False
    more = theirs.shape[-1] - columns
    if rows != columns or more <= 0:
        return False
    kept = (
        torch.tensor([place for place in range(columns + more) if not start <= place < start + more])
        for start in range(columns + 1)
    )
    return any(_equal(theirs[..., places[:, None], places], ours) for places in kept)


def _padded(theirs: Tensor, ours: Tensor) -> bool:
    """Every row of ours is one of theirs, and they have more."""
    a, b = (_sorted_rows(t) for t in (theirs, ours))
    if not len(b) or len(a) < len(b) or len(a) > 20000:
        return False
    width = max(a.shape[1], b.shape[1])
    a, b = (torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (a, b))
    return all(bool((a - row).abs().amax(-1).min() <= SAME_MAP) for row in b)


def _in_several_windows(theirs: Tensor, ours: Tensor) -> bool:
    """All weights are there; rows are the same but for few tokens that stand in every window, added up."""
    a, b = (_sorted_rows(t) for t in (theirs, ours))
    if not len(b) or len(a) <= len(b) or len(a) > 20000:
        return False
    width = max(a.shape[1], b.shape[1])
    a, b = (torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (a, b))
    found = torch.tensor([bool((a - row).abs().amax(-1).min() <= SAME_MAP) for row in b])
    return float(found.double().mean()) >= 0.9 and bool((a.sum() - b.sum()).abs() <= SAME_MAP * len(a))


def _sorted_rows(map: Tensor) -> Tensor:
    """All rows that are not zero, their entries in falling order, with no more zeros than there must be."""
    parts = [_compact(part) for part in map.reshape(-1, map.shape[-1]).split(1024)]
    width = max((part.shape[1] for part in parts), default=0)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


def _compact(rows: Tensor) -> Tensor:
    """The same of a few rows: maps of windows hold many zeros."""
    rows = rows[(rows != 0).any(-1)]
    if not len(rows):
        return rows[:, :0]
    places = rows.abs().topk(int((rows != 0).sum(-1).max()), -1).indices
    return rows.gather(-1, places).sort(-1, descending=True).values


def _mean_of_heads(theirs: Tensor, ours: Tensor) -> bool:
    return (
        theirs.shape == ours.shape
        and theirs.ndim == 4
        and torch.allclose(theirs, ours.mean(1, keepdim=True).expand_as(ours), rtol=0, atol=SAME_MAP)
    )


def is_no_map(theirs: Tensor, maps: Iterable[Tensor]) -> bool:
    """Negative, and of no shape that a map has: some models report something else."""
    return bool((theirs < -SAME_MAP).any()) and all(theirs.shape[-2:] != ours.shape[-2:] for ours in maps)


_AGREEMENTS = {
    "equal": _equal,
    "for all samples": _for_all,
    "laid out differently": _same_entries,
    "before the softmax": _before_softmax,
    "transposed": _transposed,
    "mean of heads": _mean_of_heads,
    "a part": _block,
    "columns of no token": _more_columns,
    "places of no token": _more_places,
    "with padding": _padded,
    "in several windows": _in_several_windows,
}
