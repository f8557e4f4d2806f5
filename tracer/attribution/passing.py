"""What part of the relevance comes through each attention: so much is lost where it is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fxplain.attention.plan import Plan
from fxplain.attribution.prediction import Prediction
from fxplain.attribution.row_mode import ByHeads, Weigh
from fxplain.attribution.scheduled import Scheduled
from fxplain.attribution.table import Method
from fxplain.errors import MethodError

MOST = 1 << 28
"""Numbers in the weights of all attentions together, which are held while one after the other is left out."""


@dataclass(eq=False)
class _Weights:
    """The weights of every attention, worked out once; those of the one that is left out are 0."""

    weigh: Weigh
    left_out: int = -1
    """The site of that attention."""
    kept: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = field(default_factory=dict)
    """(site, number of the gradient) -> the gradient, which keeps its number as long as it is held, and the
    weights."""

    def __call__(self, prediction: Prediction, plan: Plan, gradient: Tensor | None) -> Tensor:
        name = plan.site.index, id(gradient)
        if name not in self.kept:
            self.kept[name] = gradient, self.weigh(prediction, plan, gradient)
        weights = self.kept[name][1]
        return torch.zeros_like(weights) if plan.site.index == self.left_out else weights


@dataclass(frozen=True)
class _Held(ByHeads):
    """The same where weights are functions of heads, whose sum over a step's members may be clamped."""

    weights: _Weights | None = None

    def __call__(self, prediction: Prediction, plan: Plan, gradient: Tensor | None) -> Tensor:
        assert self.weights is not None
        return self.weights(prediction, plan, gradient)

    def formed_whole(self, members: Sequence[tuple[Plan, float]]) -> bool:
        """Every attention's, so that it is these weights that are taken."""
        return members[0][0].site.attends


def passing(method: Method, prediction: Prediction, rows: Tensor) -> dict[int, Tensor]:
    """How much of the relevance comes through each attention.

    Args:
        method: one that weighs every attention and runs rules over them.
        prediction: what is explained.
        rows: [batch, token], what the method says of it.

    Returns:
        Site of an attention -> [batch, token]: ``rows`` less what they are without that attention. Where no
        rule divides by sums, this is the sum over all paths through it.

    Raises:
        MethodError: the method is no table of rules, or the maps are too large.
    """
    scheduled = method.explain
    if not isinstance(scheduled, Scheduled):
        raise MethodError(
            f"the method {method.name!r} does not go attention by attention",
            expected="a method that carries rows over the attentions, such as relevancy or rollout",
            found=method.description,
        )
    steps = scheduled.steps(prediction)
    attending = {site.index for site in prediction.labelled.classified.sites if site.attends}
    _check_size(prediction, [site for _, site in steps])
    weights = _Weights(scheduled.weigh)
    own: Weigh = weights
    if isinstance(scheduled.weigh, ByHeads):
        own = _Held(scheduled.weigh.head_mean, scheduled.weigh.net, weights=weights)
    again = replace(scheduled, weigh=own)
    found = {}
    for site in prediction.labelled.classified.sites:
        if site.index in attending:
            weights.left_out = site.index
            found[site.index] = rows - again(prediction).rows.to(rows)
    return found


def _check_size(prediction: Prediction, sites: list[int]) -> None:
    plans = [prediction.labelled.plans[site] for site in dict.fromkeys(sites)]
    size = prediction.batch * sum(len(plan.queries) * len(plan.keys) for plan in plans)
    if size > MOST:
        raise MethodError(
            "the maps are too large to be held while each attention is left out",
            expected=f"at most {MOST} weights between tokens in all attentions",
            found=str(size),
            hint="take a shorter input",
        )
