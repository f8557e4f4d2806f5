"""The rules of the ICCV 2021 paper, written once more, one sample at a time and as slowly as they read.

Nothing here is shared with the library: these are what it is held against. Streams are named by letters; a
state holds R[a, b] for every pair of them, [rows of a, columns of b].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class Reference:
    """What one model's relevancy must be.

    ``blocks``: (index of an attention, R between its query and its key stream [batch, query, key]).
    ``rows``: the same of the row that is read, [batch, key].
    """

    blocks: tuple[tuple[int, Tensor], ...]
    rows: tuple[tuple[int, Tensor], ...]
    score: Tensor


def start(sizes: dict[str, int], dtype: torch.dtype) -> State:
    """Equations 1 and 2: identity within a stream, zero between two."""
    return {
        (a, b): torch.eye(n, dtype=dtype) if a == b else torch.zeros(n, m, dtype=dtype)
        for a, n in sizes.items()
        for b, m in sizes.items()
    }


def head_mean(attention: Tensor, gradient: Tensor) -> Tensor:
    """Equation 5 for one sample: the mean over heads of (∇A ⊙ A)⁺, from [head, query, key]."""
    total = torch.zeros_like(attention[0])
    for a, g in zip(attention, gradient, strict=True):
        total = total + (a * g).clamp(min=0)
    return total / len(attention)


def normalised(relevancy: Tensor) -> Tensor:
    """Equations 8 and 9: rows of R - I sum to one, then I again; a row of zeros stays as it is."""
    rest = relevancy - torch.eye(len(relevancy), dtype=relevancy.dtype)
    result = torch.eye(len(relevancy), dtype=relevancy.dtype)
    for index, row in enumerate(rest):
        if row.sum() != 0:
            result[index] += row / row.sum()
    return result


def self_attention(state: State, s: str, mean: Tensor) -> State:
    """Equations 6 and 7: R[s, b] += Ā R[s, b] for every stream b."""
    return {(a, b): r + mean @ r if a == s else r for (a, b), r in state.items()}


def cross_increments(state: State, s: str, q: str, mean: Tensor) -> State:
    """Equations 10 and 11 for s looking at q: what is to be added, from the state as it stands."""
    return {
        (s, q): normalised(state[s, s]).T @ mean @ normalised(state[q, q]),
        (s, s): mean @ state[q, s],
    }


def add(state: State, *increments: State) -> State:
    result = dict(state)
    for increment in increments:
        for pair, value in increment.items():
            result[pair] = result[pair] + value
    return result


def means(score: Tensor, maps: list[Tensor], sample: int) -> list[Tensor]:
    """Ā of every map for one sample; a map that the score does not depend on has the gradient zero."""
    found = torch.autograd.grad(score[sample], maps, retain_graph=True, allow_unused=True)
    return [
        head_mean(a[sample].detach(), torch.zeros_like(a[sample]) if g is None else g[sample])
        for a, g in zip(maps, found, strict=True)
    ]


def stacked(states: list[State], pair: tuple[str, str]) -> Tensor:
    """R[pair] of all samples, [batch, row, column]."""
    return torch.stack([state[pair] for state in states])


def read(block: Tensor, positions: list[int]) -> Tensor:
    """The row of each sample's own position, [batch, column]."""
    return torch.stack([matrix[position] for matrix, position in zip(block, positions, strict=True)])
