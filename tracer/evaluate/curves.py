"""Perturbation curves in numbers: in which order tokens go, the area below a curve, both directions in one.

The protocols are those of Chefer, Gur, Wolf, CVPR 2021 (section 4) and ICCV 2021 (section 5), by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxplain.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """Which parts of the tokens (or pixels) are removed, one after the other."""

    name: str
    steps: tuple[float, ...]
    paper: str


PROTOCOLS = {
    one.name: one
    for one in (
        Protocol(
            "pixels",
            tuple(k / 10 for k in range(1, 10)),
            "Chefer et al., CVPR 2021: 10 to 90 % of the pixels, from the map as large as the picture",
        ),
        Protocol(
            "tokens",
            (0.0, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0),
            "Chefer et al., ICCV 2021, LXMERT and VisualBERT: tokens are deleted",
        ),
        Protocol("even", tuple(k / 10 for k in range(11)), "0 to 100 % in equal steps"),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PROTOCOLS:
        raise InputError(
            f"there is no protocol {name!r}", expected=" or ".join(map(repr, PROTOCOLS)), found=repr(name)
        )
    return PROTOCOLS[name]


def kept(relevance: Tensor, fraction: float, *, most_first: bool, removable: Tensor | None = None) -> Tensor:
    """Which tokens remain once a part of them has been removed by their relevance.

    Args:
        relevance: [batch, tokens]; NaN goes like the least relevant.
        fraction: the part of the removable tokens that goes, rounded down (as in the authors' code).
        most_first: the most relevant go first (positive perturbation), else the least (negative).
        removable: [batch, tokens] bool: tokens that may go ([CLS] and padding may not); None: all.

    Returns:
        [batch, tokens] bool. Of equal tokens the first one goes first.

    Example:
        >>> kept(torch.tensor([[0.1, 0.9, 0.5, 0.2]]), 0.5, most_first=True)
        tensor([[ True, False, False,  True]])
    """
    may = torch.ones_like(relevance, dtype=torch.bool) if removable is None else removable
    order = ranked(relevance, may, most_first=most_first)
    # 0.29 * 100 is 28.999...: what is meant is 29
    going = (may.sum(1, keepdim=True) * fraction + 1e-9).floor().long()
    place = torch.arange(relevance.shape[1], device=relevance.device)[None]
    return torch.ones_like(may).scatter(1, order, place >= going)


def ranked(relevance: Tensor, may: Tensor, *, most_first: bool) -> Tensor:
    """Token indices [batch, tokens] by relevance, those that ``may`` be taken before all others.

    Of equal tokens the first comes first; NaN is the least relevant.
    """
    values = relevance.detach().double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = values.argsort(dim=1, descending=most_first, stable=True)
    return order.gather(1, (~may).gather(1, order).long().argsort(dim=1, stable=True))


def auc(steps: Tensor, values: Tensor) -> Tensor:
    """The area below a curve by the trapezoid rule, divided by the width of its steps: a mean height.

    Args:
        steps: [steps], rising.
        values: [..., steps].

    Example:
        >>> auc(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 1.0, 0.0]))
        tensor(0.7500)
    """
    return torch.trapezoid(values, steps.to(values), dim=-1) / (steps[-1] - steps[0]).to(values)


def srg(positive: Tensor, negative: Tensor) -> Tensor:
    """Symmetric relevance gain: the area with the least relevant removed first less that with the most first.

    Blücher, Vielhaben, Strodthoff, *Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI
    Benchmarks*, TMLR 2024. Chance has 0, whatever removal itself does to the model.
    """
    return negative - positive
