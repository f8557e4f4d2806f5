"""Row mode: what one attention does to a row of the relevancy matrix, carried from the readout backwards.

Every rule of this package is linear in what it reads, ``ΔR[q, :] = L(R)``. So a row vector y times R needs
no matrix: ``y · ΔR[q, :]`` is a sum of other row vectors times the R that the rule has read. A *row rule*
says which these are. As in :mod:`fxplain.rules.rows` the identity and the excess ``D = R - I`` are kept
apart.

Vectors have the axes batch, vector, token: several rows are carried side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from fxplain.rules.rows import Reading, Rule, Update, divide_rows


class Weights(Protocol):
    """A map without heads, Ā, that need not be held: only its products with vectors are asked for."""

    def left(self, rows: Tensor) -> Tensor:
        """``rows · Ā``: [batch, vector, query] -> [batch, vector, key]."""

    def right(self, columns: Tensor) -> Tensor:
        """``Ā · columns``: [batch, vector, key] -> [batch, vector, query]."""


@dataclass(frozen=True, eq=False)
class RowReading:
    """One attention (or linear mixing), and how much each row of its update counts."""

    weights: Weights
    rows: Tensor
    """``[batch, vector, query]``: the vector y, on the rows of the queries."""
    queries: Tensor
    """``[query]``, int64: the token of every row of the map."""
    keys: Tensor
    """``[key]``, int64: the token of every column of the map."""
    reached: Tensor
    """``[token]``, bool: the columns that rows of the keys can fill, whatever the values are."""
    through_queries: Callable[[], Tensor]
    """``[batch, vector, query]``: y times the transpose of ``D[q, q]``, as it stands at the queries."""
    query_sums: Callable[[], Tensor]
    """``[batch, 1, query]``: the sums of the rows of ``D[q, q]``."""
    key_sums: Callable[[], Tensor]
    """``[batch, 1, key]``: the sums of the rows of ``D[k, k]``."""


@dataclass(frozen=True, eq=False)
class Pull:
    """A vector that goes on: it is to be multiplied with rows of R as they stand at the step's inputs."""

    rows: Tensor
    """``[batch, vector, n]``."""
    of: Literal["queries", "keys"]
    """Whose rows of R these are."""
    part: Literal["whole", "excess", "identity"] = "whole"
    """What is multiplied: R, ``R - I`` or I."""
    columns: Tensor | None = None
    """``[token]``, bool: the columns that count; None for all."""


@dataclass(frozen=True, eq=False)
class Pulls:
    """All that one step hands on; ``replaced`` as in :class:`fxplain.rules.rows.Update`, but of rows of R."""

    parts: tuple[Pull, ...]
    replaced: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ColumnReading:
    """One attention (or linear mixing) and R times some columns, as it stands at the step's inputs."""

    weights: Weights
    at_queries: Tensor
    """``[batch, vector, query]``."""
    at_keys: Tensor
    """``[batch, vector, key]``."""


RowRule = Callable[[RowReading], Pulls]
ColumnRule = Callable[[ColumnReading], Tensor]
"""The rule's increment times columns: ``[batch, vector, query]``."""


@dataclass(frozen=True)
class Law:
    """One rule in its three forms: for blocks of R, for a row vector times it, for it times columns."""

    increment: Rule
    row: RowRule
    column: ColumnRule | None = None
    """None where that would need a row vector inside of a column (the transpose of eq. 10)."""
    nested: bool = False
    """Whether ``row`` asks for R times columns itself."""
    replaces: Literal["nothing", "reached", "all"] = "nothing"
    """In which columns at most what it hands on takes the place of what was there: those that rows of the
    keys can fill, or all. One that replaces nothing, and is nested, pulls at rows of the keys alone."""

    def __call__(self, reading: Reading) -> Update:
        return self.increment(reading)


def hand_on(reading: RowReading) -> Pulls:
    """``ΔR[q, :] = Ā · R[k, :]``: eqs. 6 and 7 of Chefer et al., ICCV 2021; a join, too.

    Example:
        >>> import torch
        >>> y, tokens = torch.tensor([[[2.0]]]), torch.tensor([0])
        >>> none = lambda: torch.zeros(1, 1, 1)
        >>> weights = Dense(torch.tensor([[[0.5]]]))
        >>> reached = torch.tensor([True])
        >>> hand_on(RowReading(weights, y, tokens, tokens, reached, none, none, none)).parts[0].rows
        tensor([[[1.]]])
    """
    return Pulls((Pull(reading.weights.left(reading.rows), "keys"),))


def hand_on_column(reading: ColumnReading) -> Tensor:
    """:func:`hand_on` times columns."""
    return reading.weights.right(reading.at_keys)


def row_sums(weights: Weights, keys: Tensor) -> Tensor:
    """``[batch, 1, query]``: the sums of a map's rows; ``keys`` is of the shape [batch, vector, key]."""
    return weights.right(keys.new_ones(keys.shape[0], 1, keys.shape[2]))


def carry_row(reading: RowReading) -> Pulls:
    """:func:`fxplain.rules.rows.carry`: ``ΔR[new, :] = M R[old, :]``, M the weights over their row sums."""
    like = reading.rows.new_empty(reading.rows.shape[0], 1, reading.keys.numel())
    rows = divide_rows(reading.rows, row_sums(reading.weights, like))
    return Pulls((Pull(reading.weights.left(rows), "keys"),))


def carry_column(reading: ColumnReading) -> Tensor:
    """:func:`carry_row` times columns."""
    return divide_rows(reading.weights.right(reading.at_keys), row_sums(reading.weights, reading.at_keys))


@dataclass(frozen=True)
class Dense:
    """A map that is held: ``[batch, query, key]``."""

    map: Tensor

    def left(self, rows: Tensor) -> Tensor:
        return rows @ self.map.to(rows.dtype)

    def right(self, columns: Tensor) -> Tensor:
        return columns @ self.map.to(columns.dtype).transpose(-1, -2)
