"""Raw attention: the head mean of the last attention map, the simplest of the baselines."""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.rules.adjoint import Pull, Pulls, RowReading
from fxplain.rules.rows import Reading, Update, through


def head_mean(maps: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Mean over heads of attention maps, in float32 or better.

    Args:
        maps: attention maps, any number of axes.
        dim: the axis, or axes, of the heads.

    Returns:
        ``maps``' shape without ``dim``. NaN (the softmax of a fully masked row) counts as 0.

    Example:
        >>> head_mean(torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]]), dim=0)
        tensor([[0.3750, 0.6250]])
    """
    dtype = torch.promote_types(maps.dtype, torch.float32)
    return maps.to(dtype).nan_to_num(nan=0.0).mean(dim)


def place(reading: Reading) -> Update:
    """The rows of the queries become the map itself, in the columns of its keys; others keep what they have.

    Where keys are tokens made of older ones (merged patches), the map is handed on to those as well.

    Example:
        >>> tokens, rows = torch.tensor([0, 1]), torch.zeros(1, 2, 2)
        >>> weights = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
        >>> update = place(Reading(weights, tokens, tokens, rows, rows, torch.tensor([True, True])))
        >>> update.values + torch.eye(2)
        tensor([[[0.2500, 0.7500],
                 [0.5000, 0.5000]]])
    """
    values = through(reading.weights, reading.key_excess, reading.keys)
    rows = torch.arange(reading.queries.numel(), device=values.device)
    # an excess lacks the identity; a query keeps its own where no map is placed on it
    values[:, rows, reading.queries] -= reading.reached[reading.queries].to(values.dtype)
    return Update(values, replaced=reading.reached)


def place_row(reading: RowReading) -> Pulls:
    """:func:`place` for a row vector y: ``y · Ā`` goes on to the rows of the keys, in the columns that these
    can fill."""
    part = Pull(reading.weights.left(reading.rows), "keys", columns=reading.reached)
    return Pulls((part,), reading.reached)
