"""LRP through additions of activations: which part of the relevance each of the terms gets.

Sources: Bach et al. 2015 (ε); Chefer, Gur, Wolf, CVPR 2021, eqs. 9 to 12 (the normalised rule); Montavon et
al., *Layer-wise relevance propagation: an overview*, 2019 (gamma, which is for linear maps there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fxplain.rules.lrp_products import share, weighted


def epsilon_split(terms: Sequence[Tensor], relevance: Tensor, epsilon: float) -> list[Tensor]:
    """LRP-ε, element by element: ``R_a = a / (a + b) · R``. Conserves but for ε.

    Example:
        >>> epsilon_split([torch.tensor([1.0]), torch.tensor([3.0])], torch.tensor([1.0]), 0.0)
        [tensor([0.2500]), tensor([0.7500])]
    """
    shares = share(relevance, _total(terms), epsilon)
    return [weighted(term, shares) for term in terms]


def normalised_split(
    terms: Sequence[Tensor], relevance: Tensor, total: Callable[[Tensor], Tensor] = torch.sum
) -> list[Tensor]:
    """Chefer et al., CVPR 2021, eq. 12: the ε rule without ε, then each term is scaled as a whole.

    Terms share the sum of R in proportion to the absolute values of their sums, so that a positive and a
    negative term cannot both grow without bound. Conserves the sum over all elements, which must be those
    of one sample; of several, ``total`` gives for each element the sum over its own sample's.

    Example:
        >>> terms = [torch.tensor([1.0, 1.0]), torch.tensor([1.0, -3.0])]
        >>> [part.sum().item() for part in normalised_split(terms, torch.tensor([1.0, 1.0]))]
        [0.0, 2.0]
    """
    parts = epsilon_split(terms, relevance, 0.0)
    sums = [total(part) for part in parts]
    whole = torch.stack([own.abs() for own in sums]).sum(0)
    scale = torch.where(whole == 0, 0.0, total(relevance) / torch.where(whole == 0, 1.0, whole))
    return [part * own.sign() * scale for part, own in zip(parts, sums, strict=True)]


def gamma_split(terms: Sequence[Tensor], relevance: Tensor, gamma: float, epsilon: float) -> list[Tensor]:
    """LRP-gamma on an addition: terms of the same sign as their sum count ``1 + gamma`` times.

    With gamma 0 it is the ε rule; the larger gamma, the less a term that opposes the sum takes part, so that
    two terms that cancel no longer get large relevances of opposite sign. Conserves but for ε.

    Example:
        >>> gamma_split([torch.tensor([3.0]), torch.tensor([-1.0])], torch.tensor([1.0]), 1.0, 0.0)
        [tensor([1.2000]), tensor([-0.2000])]
    """
    total = _total(terms)
    grown = [term + gamma * torch.where(total < 0, term.clamp(max=0), term.clamp(min=0)) for term in terms]
    shares = share(relevance, _total(grown), epsilon)
    return [weighted(term, shares) for term in grown]


def _total(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])
