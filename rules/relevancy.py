"""Relevancy: eqs. 5 to 11 of Chefer, Gur, Wolf, *Generic Attention-model Explainability for Interpreting
Bi-Modal and Encoder-Decoder Transformers*, ICCV 2021.

The paper's s and q (the stream that reads and the stream that is read) are ``query`` and ``key`` here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxplain.rules.adjoint import Pull, Pulls, RowReading
from fxplain.rules.rows import Reading, Update, divide_rows, through


@dataclass(frozen=True)
class Flags:
    """The ablations of the paper's authors; the defaults are the method itself."""

    normalize_self_attention: bool = True
    """Eqs. 8 and 9 before eq. 10; off: eq. 10 on R as it stands."""
    self_in_rule_10: bool = True
    """Eq. 10 in full; off: a cross attention adds its map alone."""
    aggregate: bool = True
    """Increments are added to R; off: each takes the place of the rows it was computed for."""


METHOD = Flags()


def head_mean_relevance(maps: Tensor, gradients: Tensor | None, dim: int | tuple[int, ...]) -> Tensor:
    """Eq. 5: ``Ā = mean over heads of (∇A ⊙ A)⁺``; the clamp comes before the mean.

    Args:
        maps: attention maps A, any number of axes.
        gradients: gradient of the score to ``maps``, of one shape with it; None where the score does not
            depend on them.
        dim: the axis, or axes, of the heads.

    Returns:
        ``maps``' shape without ``dim``, in float32 or better (half precision underflows in the product).
        Where the gradient is 0 the result is 0, even if the map is NaN (a fully masked row).

    Example:
        >>> maps = torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]])  # [head, query, key]
        >>> gradients = torch.tensor([[[1.0, -1.0]], [[2.0, 4.0]]])
        >>> head_mean_relevance(maps, gradients, dim=0)
        tensor([[0.5000, 1.5000]])
    """
    dtype = torch.promote_types(maps.dtype, torch.float32)
    if gradients is None:
        return torch.zeros_like(maps, dtype=dtype).mean(dim)
    gradients = gradients.to(dtype)
    mean = (maps.to(dtype) * gradients).clamp_(min=0).mean(dim)
    if not bool(mean.isnan().any()):
        return mean
    return (maps.to(dtype) * gradients).masked_fill_(gradients == 0, 0.0).clamp_(min=0).mean(dim)


def normalised_excess(excess: Tensor) -> Tensor:
    """Eqs. 8 and 9 without the identity: ``R̄ - I``, the rows of ``R - I`` divided by their sums.

    Args:
        excess: ``[..., n, n]``, R - I between the tokens of one stream.

    Returns:
        ``[..., n, n]``. A row that sums to zero stays zero (its token has taken nothing in yet), where the
        equation itself says 0/0.

    Example:
        >>> normalised_excess(torch.tensor([[0.2, 0.6], [0.0, 0.0]]))
        tensor([[0.2500, 0.7500],
                [0.0000, 0.0000]])
    """
    return divide_rows(excess, excess.sum(-1, keepdim=True))


def cross_block(weights: Tensor, query_excess: Tensor, key_excess: Tensor, flags: Flags = METHOD) -> Tensor:
    """Eq. 10: ``R̄[q,q]ᵀ · Ā · R̄[k,k]``, what a cross attention adds to the block R[q,k].

    Args:
        weights: ``[batch, query, key]``, Ā.
        query_excess: ``[batch, query, query]``, R - I among the queries.
        key_excess: ``[batch, key, key]``, R - I among the keys.
        flags: the ablations.

    Returns:
        ``[batch, query, key]``.

    Example:
        >>> weights = torch.tensor([[[0.5, 0.25]]])
        >>> cross_block(weights, torch.tensor([[[3.0]]]), torch.zeros(1, 2, 2))
        tensor([[[1.0000, 0.5000]]])
    """
    if not flags.self_in_rule_10:
        return weights
    if flags.normalize_self_attention:
        query_excess, key_excess = normalised_excess(query_excess), normalised_excess(key_excess)
    left = weights + query_excess.transpose(-1, -2) @ weights
    return left + left @ key_excess


def self_increment(reading: Reading, flags: Flags = METHOD) -> Update:
    """Eqs. 6 and 7: ``ΔR[q, :] = Ā · R[k, :]``, for the columns of every stream at once.

    Example:
        >>> tokens, rows = torch.tensor([0, 1]), torch.zeros(1, 2, 2)
        >>> weights = torch.tensor([[[0.25, 0.5], [0.0, 1.0]]])
        >>> reading = Reading(weights, tokens, tokens, rows, rows, torch.tensor([True, True]))
        >>> self_increment(reading).values
        tensor([[[0.2500, 0.5000],
                 [0.0000, 1.0000]]])
    """
    return _aggregated(through(reading.weights, reading.key_excess, reading.keys), reading, flags)


def cross_increment(reading: Reading, flags: Flags = METHOD) -> Update:
    """Eq. 10 in the columns of the keys, and ``ΔR[q, b] = Ā · R[k, b]`` in those of any other stream b.

    With b the queries' own stream the second is eq. 11; it holds for a third modality as it stands.

    Example:
        >>> rows = torch.zeros(1, 1, 3), torch.zeros(1, 2, 3)
        >>> weights, reached = torch.tensor([[[0.25, 0.5]]]), torch.tensor([False, True, True])
        >>> cross_increment(Reading(weights, torch.tensor([0]), torch.tensor([1, 2]), *rows, reached)).values
        tensor([[[0.0000, 0.2500, 0.5000]]])
    """
    values = reading.weights @ reading.key_excess
    among_queries = reading.query_excess.index_select(-1, reading.queries)
    among_keys = reading.key_excess.index_select(-1, reading.keys)
    block = cross_block(reading.weights, among_queries, among_keys, flags)
    return _aggregated(values.index_copy_(-1, reading.keys, block), reading, flags)


def self_row(reading: RowReading, flags: Flags = METHOD) -> Pulls:
    """:func:`self_increment` for a row vector y: ``y · ΔR[q, :] = (y · Ā) · R[k, :]``."""
    part = Pull(reading.weights.left(reading.rows), "keys")
    return Pulls((part,), _all_replaced(reading, flags))


def cross_row(reading: RowReading, flags: Flags = METHOD) -> Pulls:
    """:func:`cross_increment` for a row vector y: with ``u = (y + y · (R̄[q,q] - I)ᵀ) · Ā``, eq. 10 is
    ``u · R̄[k,k]``, and in other columns eq. 11 is ``(y · Ā) · R[k, b]``.

    R̄ - I is ``D`` over its row sums (eqs. 8, 9), so u over the sums goes on to ``D[k, k]``.
    """
    rows = reading.rows
    if flags.self_in_rule_10:
        beside = reading.through_queries()
        rows = rows + (
            divide_rows(beside, reading.query_sums()) if flags.normalize_self_attention else beside
        )
    own = torch.zeros_like(reading.reached).index_fill_(0, reading.keys, True)
    others = reading.reached & ~own
    several = bool(others.any()) and rows is not reading.rows
    both = reading.weights.left(torch.cat([rows, reading.rows], 1) if several else rows)
    ours, plain = both.chunk(2, 1) if several else (both, both)
    parts = [Pull(ours, "keys", "identity")]
    if flags.self_in_rule_10:
        scaled = divide_rows(ours, reading.key_sums()) if flags.normalize_self_attention else ours
        parts.append(Pull(scaled, "keys", "excess", own))
    if bool(others.any()):
        parts.append(Pull(plain, "keys", "excess", others))
    return Pulls(tuple(parts), _all_replaced(reading, flags))


def _all_replaced(reading: RowReading, flags: Flags) -> Tensor | None:
    return None if flags.aggregate else torch.ones_like(reading.reached)


def _aggregated(values: Tensor, reading: Reading, flags: Flags) -> Update:
    if flags.aggregate:
        return Update(values)
    # the rows become the increment itself; as an excess it lacks the identity of the queries
    rows = torch.arange(reading.queries.numel(), device=values.device)
    values[:, rows, reading.queries] -= 1
    return Update(values, replaced=torch.ones_like(reading.reached))
