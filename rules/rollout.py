"""Attention rollout: Abnar and Zuidema, *Quantifying Attention Flow in Transformers*, ACL 2020, as the
baseline of Chefer et al., ICCV 2021 (eqs. 12 and 16), with cross attentions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.rules.adjoint import ColumnReading, Pull, Pulls, RowReading, row_sums
from fxplain.rules.rows import Reading, Update, divide_rows, through


def self_increment(reading: Reading, normalise: bool = True) -> Update:
    """One factor of the rollout: ``R[q, :] := (I + Ā) R``, its rows divided by their sums.

    With row sums s of Ā this adds ``(Ā R[k, :] - s R[q, :]) / (1 + s)``; unnormalised (eq. 16 as printed)
    it adds ``Ā R[k, :]``.

    Example:
        >>> tokens, rows = torch.tensor([0, 1]), torch.zeros(1, 2, 2)
        >>> weights = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
        >>> reading = Reading(weights, tokens, tokens, rows, rows, torch.tensor([True, True]))
        >>> self_increment(reading).values + torch.eye(2)
        tensor([[[0.6250, 0.3750],
                 [0.2500, 0.7500]]])
    """
    values = through(reading.weights, reading.key_excess, reading.keys)
    if not normalise:
        return Update(values)
    sums = reading.weights.sum(-1, keepdim=True)
    values = values - sums * reading.query_excess
    rows = torch.arange(reading.queries.numel(), device=values.device)
    values[:, rows, reading.queries] -= sums.squeeze(-1)
    return Update(divide_rows(values, 1 + sums))


def cross_increment(reading: Reading) -> Update:
    """Eq. 12: ``R[q, k] := R[q,q]ᵀ · Ā · R[k,k]``, in place of what an earlier cross attention left there.

    Only the last cross attention of a pair of streams counts. Where rows of the keys hold columns of a
    third stream, these are handed on in the same way; columns of the queries' own stream stay as they are.

    Example:
        >>> rows = torch.zeros(1, 1, 3), torch.zeros(1, 2, 3)
        >>> weights, reached = torch.tensor([[[0.25, 0.75]]]), torch.tensor([False, True, True])
        >>> cross_increment(Reading(weights, torch.tensor([0]), torch.tensor([1, 2]), *rows, reached)).values
        tensor([[[0.0000, 0.2500, 0.7500]]])
    """
    among_queries = reading.query_excess.index_select(-1, reading.queries)
    left = reading.weights + among_queries.transpose(-1, -2) @ reading.weights
    replaced = reading.reached.index_fill(0, reading.queries, False)
    values = through(left, reading.key_excess, reading.keys)
    return Update(values.masked_fill_(~replaced, 0.0), replaced)


def self_row(reading: RowReading) -> Pulls:
    """:func:`self_increment`, normalised, for a row vector y: ``z · Ā`` goes on to the rows of the keys and
    ``-s z`` to those of the queries, with ``z = y / (1 + s)``."""
    like = reading.rows.new_empty(reading.rows.shape[0], 1, reading.keys.numel())
    sums = row_sums(reading.weights, like)
    rows = divide_rows(reading.rows, 1 + sums)
    return Pulls((Pull(reading.weights.left(rows), "keys"), Pull(-sums * rows, "queries")))


def self_column(reading: ColumnReading) -> Tensor:
    """:func:`self_increment`, normalised, times columns."""
    sums = row_sums(reading.weights, reading.at_keys)
    return divide_rows(reading.weights.right(reading.at_keys) - sums * reading.at_queries, 1 + sums)


def cross_row(reading: RowReading) -> Pulls:
    """:func:`cross_increment` for a row vector y: ``(y + y · D[q,q]ᵀ) · Ā`` goes on to the rows of the keys,
    in the columns that eq. 12 replaces."""
    replaced = reading.reached.index_fill(0, reading.queries, False)
    rows = reading.weights.left(reading.rows + reading.through_queries())
    return Pulls((Pull(rows, "keys", columns=replaced),), replaced)
