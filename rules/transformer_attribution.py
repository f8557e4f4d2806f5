"""Transformer attribution: Chefer, Gur, Wolf, *Transformer Interpretability Beyond Attention Visualization*,
CVPR 2021, eqs. 13 and 14.

Eq. 13, ``Ā = I + mean over heads of (∇A ⊙ R^A)⁺`` with R^A the LRP relevance of a map, is eq. 5 of the later
paper with R^A in place of A; eq. 14, the product of all Ā, is a rollout without normalisation. What is here
is the rest: what the authors do with a cross attention when they use the method as a baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.rules.adjoint import Pull, Pulls, RowReading
from fxplain.rules.rows import Reading, Update, through


def gradient_head_mean(maps: Tensor, gradients: Tensor | None, dim: int | tuple[int, ...]) -> Tensor:
    """The ablation of eq. 13 without relevance: mean over heads of ``(∇A)⁺``, at the entries that A has.

    The gradient to an entry that the mask forbids says nothing: it has no weight however large it is.

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]])  # [head, query, key]
        >>> gradient_head_mean(maps, torch.tensor([[[9.0, 1.0]], [[2.0, -4.0]]]), dim=0)
        tensor([[1.0000, 0.5000]])
    """
    dtype = torch.promote_types(maps.dtype, torch.float32)
    if gradients is None:
        return torch.zeros_like(maps, dtype=dtype).mean(dim)
    return gradients.to(dtype).masked_fill(maps == 0, 0.0).clamp_(min=0).mean(dim)


def cross_increment(reading: Reading) -> Update:
    """``R[q, k] := Ā`` of the last cross attention alone: what the keys have attended to is left out.

    Keys that were made of older tokens (merged patches) hand their relevance on to these.

    Example:
        >>> import torch
        >>> rows = torch.zeros(1, 1, 3), torch.ones(1, 2, 3)
        >>> weights, reached = torch.tensor([[[0.25, 0.75]]]), torch.tensor([False, True, True])
        >>> cross_increment(Reading(weights, torch.tensor([0]), torch.tensor([1, 2]), *rows, reached)).values
        tensor([[[0.0000, 0.2500, 0.7500]]])
    """
    older = reading.key_excess.index_fill(-1, reading.keys, 0.0)
    replaced = reading.reached.index_fill(0, reading.queries, False)
    values = through(reading.weights, older, reading.keys)
    return Update(values.masked_fill(~replaced, 0.0), replaced)


def cross_row(reading: RowReading) -> Pulls:
    """:func:`cross_increment` for a row vector y: ``y · Ā`` to the keys, and to what these are made of."""
    replaced = reading.reached.index_fill(0, reading.queries, False)
    older = replaced.index_fill(0, reading.keys, False)
    rows = reading.weights.left(reading.rows)
    parts = (
        Pull(rows, "keys", "identity", replaced),
        Pull(rows, "keys", "excess", older),
    )
    return Pulls(parts, replaced)
