"""Eqs. 5 to 11 of Chefer et al. (ICCV 2021) on a dense float64 matrix over all tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Map:
    """One attention [batch, heads, rows, columns]; those of one `group` read the state before the group.

    Where it `merges`, the rows are new tokens, and the numbers are what each column gives to them
    [batch, rows, columns, width].
    """

    weights: Tensor
    rows: list[int]
    columns: list[int]
    group: int
    pools: bool = False  # a new token that counts as those it pools
    merges: bool = False
    of: int = 1  # heads that are kept in maps of their own


def averaged(m: Map, slope: Tensor | None) -> Tensor:
    """Eq. 5 [batch, rows, columns]; rows of merged tokens are divided by their sum.

    Where it is 0, all tokens of a window (of a pool, all) count alike.

    Args:
        m: the map.
        slope: the score's gradient to the map, or to the tokens that it makes [batch, rows, width].
    """
    if m.merges:
        given = torch.zeros_like(m.weights[..., 0])
        given = given if slope is None else (m.weights * slope[:, :, None]).sum(-1).clamp(min=0)
        alike = (m.weights != 0).any(-1).to(given) if len(m.rows) > 1 else torch.ones_like(given)
        given = torch.where(given.sum(-1, keepdim=True) == 0, alike, given)
        return given / given.sum(-1, keepdim=True)
    return (
        torch.zeros_like(m.weights[:, 0])
        if slope is None
        else (slope * m.weights).clamp(min=0).mean(1) / m.of
    )


def own(m: Map) -> bool:
    """Whether this is self attention: all queries are among the keys or all keys among the queries, or the
    query is made of the keys alone."""
    return m.pools or set(m.rows) <= set(m.columns) or set(m.columns) <= set(m.rows)


def kinds(maps: list[Map]) -> list[str]:
    """self where the keys hold the queries; co where another map goes back; else encoder_decoder.

    The paper tells them apart by the modalities that queries and keys come from, and tokens that were merged
    come from the same as before.
    """
    maps = _of_what_was_merged(maps)
    back = {(r, c) for m in maps for r in m.rows for c in m.columns if not own(m)}
    made = []
    for m in maps:
        if own(m):
            made.append("self")
        else:
            made.append("co" if any((c, r) in back for r in m.rows for c in m.columns) else "encoder_decoder")
    return made


def _of_what_was_merged(maps: list[Map]) -> list[Map]:
    """Those that attend, with the tokens that merged ones were made of in their place."""
    of: dict[int, set[int]] = {}
    for m in maps:
        if m.merges:
            for place, row in enumerate(m.rows):
                parts = (m.weights[:, place] != 0).any(-1).any(0)
                own = {c for c, part in zip(m.columns, parts.tolist(), strict=True) if part}
                of[row] = {t for c in own for t in of.get(c, {c})}
    ends = lambda tokens: sorted({t for token in tokens for t in of.get(token, {token})})  # noqa: E731
    return [replace(m, rows=ends(m.rows), columns=ends(m.columns)) for m in maps if not m.merges]


def relevancy(maps: list[Map], averaged: list[Tensor], count: int) -> Tensor:
    """Eqs. 6 to 11 for one sample: R [token, token] after all maps in order."""
    R = torch.eye(count, dtype=torch.float64)  # noqa: N806
    for group in sorted({m.group for m in maps}):
        old = R.clone()
        for m, A in zip(maps, averaged, strict=True):  # noqa: N806
            if m.group != group:
                continue
            q, k = torch.tensor(m.rows), torch.tensor(m.columns)
            change = A @ old[k]  # eqs. 6, 7 and 11; of merged tokens the weighted mean of the rows
            if not own(m) and not m.merges:
                change[:, k] = normalised(old[q][:, q]).T @ A @ normalised(old[k][:, k])  # eq. 10
            R[q] += change
    return R


def normalised(R: Tensor) -> Tensor:  # noqa: N803
    """Eqs. 8 and 9; a row of zeros stays one."""
    one = torch.eye(len(R), dtype=R.dtype)
    sums = (R - one).sum(-1, keepdim=True)
    return (R - one) / torch.where(sums > 0, sums, 1) + one
