"""What the scheduler keeps: the increments of the steps so far, and rows of R - I summed up from them.

Sums are kept per block of rows. A chain of attentions over one stream extends the sum of the step before,
so each increment is added once; blocks that windows or slices cut differently get sums of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fxplain.rules.rows import Update

KEPT = 2
"""Sums kept per block of rows: parallel readers of an old state, and the newest."""


class Touches(Protocol):
    """Of a step, all that the state asks: its place in the order and the rows it writes."""

    @property
    def index(self) -> int: ...
    @property
    def queries(self) -> Tensor: ...


class Reads(Touches, Protocol):
    """Of a step, all that says which columns it can fill."""

    @property
    def keys(self) -> Tensor: ...
    @property
    def query_reads(self) -> frozenset[int]: ...
    @property
    def key_reads(self) -> frozenset[int]: ...


@dataclass(frozen=True, eq=False)
class Increment:
    """The update of one step to the rows ``queries`` (sorted, no repeats, on the CPU)."""

    step: int
    queries: Tensor
    update: Update


@dataclass(frozen=True, eq=False)
class _Sum:
    steps: tuple[int, ...]
    excess: Tensor


@dataclass(eq=False)
class _Block:
    """Rows that are asked for together: the steps of the whole program that touch them, and sums."""

    touched_by: tuple[int, ...]
    sums: list[_Sum] = field(default_factory=list)


def ordered(tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens sorted and without repeats, on the CPU, and where each came to lie; None if they were so.

    Example:
        >>> ordered(torch.tensor([4, 2, 4]))
        (tensor([2, 4]), tensor([1, 0, 1]))
    """
    tokens = tokens.detach().to("cpu", torch.int64)
    if bool((tokens[1:] > tokens[:-1]).all()):
        return tokens, None
    block, inverse = torch.unique(tokens, return_inverse=True)
    return block, inverse


def folded(queries: Tensor, keys: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A map over tokens in any order as the map over sorted tokens; rows or columns of one token add up.

    Example:
        >>> folded(torch.tensor([1, 0]), torch.tensor([2, 2]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        (tensor([0, 1]), tensor([2]), tensor([[[7.],
                 [3.]]]))
    """
    sides = []
    for dim, tokens in ((1, queries), (2, keys)):
        block, inverse = ordered(tokens)
        if inverse is not None:
            shape = list(weights.shape)
            shape[dim] = block.numel()
            weights = weights.new_zeros(shape).index_add_(dim, inverse.to(weights.device), weights)
        sides.append(block)
    return sides[0], sides[1], weights


def touched(steps: Sequence[Touches], tokens: int) -> Tensor:
    """``[step, token]``, bool: the rows that each step writes."""
    found = torch.zeros(len(steps), tokens, dtype=torch.bool)
    for row, step in enumerate(steps):
        found[row, step.queries.to("cpu", torch.int64)] = True
    return found


class Reach:
    """Which columns rows can fill, whatever the values are: as a mask of tokens for each step, on the CPU."""

    def __init__(self, steps: Sequence[Reads], tokens: int) -> None:
        self.tokens = tokens
        self.touched = touched(steps, tokens)
        self.by_keys: list[Tensor] = []
        """Columns that the rows of a step's keys can fill, as it reads them."""
        self.columns: list[Tensor] = []
        """Columns that a step's update can fill."""
        for step in steps:
            self.by_keys.append(self.of(step.keys, step.key_reads))
            self.columns.append(self.by_keys[-1] | self.of(step.queries, step.query_reads))

    def of(self, rows: Tensor, reads: frozenset[int]) -> Tensor:
        """``[token]``, bool: columns that these rows can fill, by the steps read and their own identity."""
        rows = rows.to("cpu", torch.int64)
        columns = torch.zeros(self.tokens, dtype=torch.bool)
        columns[rows] = True
        behind = sorted(reads)
        for step, hit in zip(behind, self.touched[behind][:, rows].any(1).tolist(), strict=True):
            if hit:
                columns |= self.columns[step]
        return columns


class State:
    """R - I after any set of steps, for blocks of rows; increments come in by :meth:`add`, in order."""

    def __init__(self, steps: Sequence[Touches], weights: Sequence[Tensor], tokens: int) -> None:
        self.tokens = tokens
        self.batch = weights[0].shape[0] if weights else 1
        self._like = weights[0] if weights else torch.zeros(())
        self._increments: dict[int, Increment] = {}
        self._blocks: dict[bytes, _Block] = {}
        self._indices = [step.index for step in steps]
        self._touches = touched(steps, tokens)

    def add(self, increment: Increment) -> None:
        """Takes in the update of the next step."""
        self._increments[increment.step] = increment

    def excess(self, block: Tensor, reads: frozenset[int]) -> Tensor:
        """Rows R - I of sorted tokens, ``[batch, n, token]``; shared, so never to be written to."""
        kept = self._block(block)
        steps = self._behind(kept, reads)
        start = max(
            (known for known in kept.sums if steps[: len(known.steps)] == known.steps),
            key=lambda known: len(known.steps),
            default=None,
        )
        if start is not None and start.steps == steps:
            return start.excess
        total = (
            self._like.new_zeros(self.batch, block.numel(), self.tokens)
            if start is None
            else start.excess.clone()
        )
        for step in steps[len(start.steps) if start is not None else 0 :]:
            _apply(self._increments[step], block, total)
        kept.sums = [*kept.sums, _Sum(steps, total)][-KEPT:]
        return total

    def _block(self, block: Tensor) -> _Block:
        name = block.numpy().tobytes()
        if name not in self._blocks:
            rows = self._touches[:, block].any(1).nonzero().flatten().tolist()
            self._blocks[name] = _Block(tuple(self._indices[row] for row in rows))
        return self._blocks[name]

    def _behind(self, block: _Block, reads: frozenset[int]) -> tuple[int, ...]:
        return tuple(step for step in block.touched_by if step in reads and step in self._increments)


def _apply(increment: Increment, block: Tensor, total: Tensor) -> None:
    """Adds one increment to the rows ``total`` of ``block``, or replaces what it replaces."""
    values, replaced = increment.update.values, increment.update.replaced
    if torch.equal(increment.queries, block):
        total.copy_(_joined(total, values, replaced))
        return
    place = torch.searchsorted(block, increment.queries).clamp_(max=block.numel() - 1)
    rows = (block[place] == increment.queries).nonzero().flatten()
    place, rows = place[rows].to(total.device), rows.to(total.device)
    values = values.index_select(1, rows)
    total.index_copy_(1, place, _joined(total.index_select(1, place), values, replaced))


def _joined(old: Tensor, values: Tensor, replaced: Tensor | None) -> Tensor:
    if replaced is None:
        return old + values
    return torch.where(replaced, values, old + values)
