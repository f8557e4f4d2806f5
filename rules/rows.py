"""Rows of a relevancy matrix: what a rule reads before one attention, and the update it answers with.

A relevancy matrix R has one row and one column per token and starts as the identity. All rules work on its
*excess* ``D = R - I``: in float32 an increment under 6e-8 would vanish beside the 1 of the diagonal, beside
a 0 it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Reading:
    """One attention (or linear mixing) and the rows of R as they stand at its own inputs.

    ``queries`` and ``keys`` are sorted and without repeats; they say on which columns the identity of the
    rows lies.
    """

    weights: Tensor
    """``[batch, query, key]``: the map without its head axis."""
    queries: Tensor
    """``[query]``, int64: the token of every row of the map."""
    keys: Tensor
    """``[key]``, int64: the token of every column of the map."""
    query_excess: Tensor
    """``[batch, query, token]``: R - I on the rows of the queries."""
    key_excess: Tensor
    """``[batch, key, token]``: R - I on the rows of the keys."""
    reached: Tensor
    """``[token]``, bool: the columns that rows of the keys can fill, whatever the values are."""


@dataclass(frozen=True, eq=False)
class Update:
    """What one step does to the rows of its queries: ``values`` are added to R - I, or replace it.

    ``values`` is ``[batch, query, token]``; ``replaced`` is ``[token]``, bool: in these columns the values
    take the place of what stood there. None adds everywhere.
    """

    values: Tensor
    replaced: Tensor | None = None


Rule = Callable[[Reading], Update]


def through(weights: Tensor, excess: Tensor, tokens: Tensor) -> Tensor:
    """The product ``weights · R[tokens, :]`` with ``R = I + excess``, the identity never added up.

    Args:
        weights: ``[batch, row, n]``.
        excess: ``[batch, n, token]``, the rows R - I of ``tokens``.
        tokens: ``[n]``, int64, the columns of the identity.

    Returns:
        ``[batch, row, token]``.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[[0.25, 0.5]]])
        >>> through(weights, torch.zeros(1, 2, 3), torch.tensor([0, 2]))
        tensor([[[0.2500, 0.0000, 0.5000]]])
    """
    return (weights @ excess).index_add_(-1, tokens, weights)


def divide_rows(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator`` with 0 where the denominator is 0; both broadcast.

    Example:
        >>> import torch
        >>> divide_rows(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[4.0], [0.0]]))
        tensor([[0.2500, 0.7500],
                [0.0000, 0.0000]])
    """
    empty = denominator == 0
    return (numerator / denominator.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)


def carry(reading: Reading) -> Update:
    """Linear mixing other than attention (pooling, patch merging): new rows are means of old ones.

    ``R[new, :] += M R[old, :]``, where M is ``weights`` with every row divided by its sum, so that a merged
    token holds as much relevance as the tokens it was made from. A row of zeros stays zero.

    Example:
        >>> import torch
        >>> rows = torch.zeros(1, 1, 3), torch.zeros(1, 2, 3)
        >>> new, old = torch.tensor([2]), torch.tensor([0, 1])
        >>> reached = torch.tensor([True, True, False])
        >>> carry(Reading(torch.tensor([[[1.0, 3.0]]]), new, old, *rows, reached)).values
        tensor([[[0.2500, 0.7500, 0.0000]]])
    """
    weights = divide_rows(reading.weights, reading.weights.sum(-1, keepdim=True))
    return Update(through(weights, reading.key_excess, reading.keys))


def join(reading: Reading) -> Update:
    """Mixing into tokens that exist: eq. 6 of Chefer et al., ICCV 2021, with the weights of the mixing.

    ``ΔR[x, :] = M R[y, :]``, where M is ``weights``, as an attention adds to the rows that its queries have.

    Example:
        >>> import torch
        >>> rows = torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)
        >>> x, y, reached = torch.tensor([0]), torch.tensor([1]), torch.tensor([False, True, False])
        >>> join(Reading(torch.tensor([[[0.5]]]), x, y, *rows, reached)).values
        tensor([[[0.0000, 0.5000, 0.0000]]])
    """
    return Update(through(reading.weights, reading.key_excess, reading.keys))
