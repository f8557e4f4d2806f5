"""Attention sinks: tokens that most attentions attend to whatever the query, and that hand over little (Xiao
et al., *Efficient Streaming Language Models with Attention Sinks*, ICLR 2024; that their values are short:
Kobayashi et al., *Attention is Not Only a Weight*, EMNLP 2020, eq. 3).
"""

from __future__ import annotations

from torch import Tensor

LEAST = 0.25
"""The weight that queries must give a key on average, at the least."""
FAIR = 4.0
"""How many times a fair share of the weight that must be besides, where there are few keys."""


def parked_on(rows: Tensor, own: Tensor) -> Tensor:
    """The keys that queries park their attention on, in one attention.

    A query's own token does not count, nor does a query that cannot see more keys than one beside itself. A
    key is parked on if, of the queries that see it, more than half give it their largest weight, and their
    mean weight is at least :data:`LEAST`, and :data:`FAIR` times a fair share.

    Args:
        rows: ``[batch, query, key]``, rows of a map's mean over heads.
        own: ``[query, key]`` bool: which key is the query's own token.

    Returns:
        ``[batch, key]`` bool.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[0.9, 0.025, 0.025, 0.025, 0.025]]).expand(1, 4, 5)
        >>> parked_on(rows, torch.eye(5, dtype=torch.bool)[1:]).tolist()
        [[True, False, False, False, False]]
    """
    others = rows.masked_fill(own, 0.0)
    seen = others > 0
    several = seen.sum(-1, keepdim=True) > 1
    count = (seen & several).sum(1)
    mean = (others * several).sum(1) / count.clamp_min(1)
    largest = others == others.amax(-1, keepdim=True)
    leads = (largest & seen & several).sum(1)
    keys = rows.shape[-1]
    return (2 * leads > count) & (mean >= max(LEAST, FAIR / max(keys, 1)))


def short(sizes: Tensor) -> Tensor:
    """Whether a key's value is less than half as long as those of the others are on average.

    Args:
        sizes: ``[batch, key]``, the lengths of the values, mean over heads.

    Example:
        >>> import torch
        >>> short(torch.tensor([[0.4, 1.0, 1.0, 1.0]])).tolist()
        [[True, False, False, False]]
    """
    others = (sizes.sum(1, keepdim=True) - sizes) / max(sizes.shape[1] - 1, 1)
    return 2 * sizes < others


def is_sink(parked: Tensor, held: Tensor) -> Tensor:
    """Whether more than half of the attentions that hold a token, and at least two, park on it.

    Args:
        parked: how many attentions park on a token; ``held``: how many have it among their keys. One shape.

    Example:
        >>> import torch
        >>> is_sink(torch.tensor([1, 3]), torch.tensor([1, 4])).tolist()
        [False, True]
    """
    return (parked >= 2) & (2 * parked > held)
