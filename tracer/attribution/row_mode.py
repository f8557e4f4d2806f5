"""Row mode on a prediction: the rows that are read, from products of vectors with each attention's map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fxplain.attention.plan import Plan
from fxplain.attribution.causal import causal_sites
from fxplain.attribution.prediction import Prediction
from fxplain.labels.flows import Sampled
from fxplain.maps.attentions import map_of
from fxplain.maps.products import Elsewhere, Formed, MapProducts, Summed
from fxplain.maps.sparse import mixing_products
from fxplain.maps.weights import HeadMean, attention_weights, folded_heads
from fxplain.rules.adjoint import Dense, Weights
from fxplain.rules.net_relevancy import centred_gradients, net
from fxplain.run.checkpoint import PassingGradients
from fxplain.run.replay import Gradients
from fxplain.run.target import Readout
from fxplain.schedule.row_schedule import rows_of, uses
from fxplain.schedule.rules_over_steps import Rules, Step
from fxplain.schedule.steps import step_columns, step_members

Weigh = Callable[[Prediction, Plan, "Tensor | None"], Tensor]
"""(prediction, an attention's plan, gradient of its tapped tensor) -> weights [batch, query, key]."""


@dataclass(frozen=True)
class ByHeads:
    """Weights from a function of maps, gradients and the axes of the heads, such as eq. 5."""

    head_mean: HeadMean
    net: bool = False
    """Whether heads may cancel: ``head_mean`` is signed, and what is negative once all heads of a step are
    added up counts for nothing."""
    centre: Literal["never", "causal", "always"] = "never"
    """Where gradients are taken beside the mean of their row: in self-attentions that are causal, or in all
    attentions but samplings, which have no map."""

    def __call__(self, prediction: Prediction, plan: Plan, gradient: Tensor | None) -> Tensor:
        if gradient is None or not self.centres(prediction, plan):
            return attention_weights(plan, prediction.run, gradient, self.head_mean)
        maps, gradients = map_of(plan.site, prediction.run, gradient)
        assert gradients is not None
        gradients = centred_gradients(maps, gradients, plan.site.axes.columns)
        return folded_heads(plan, maps, gradients, self.head_mean)

    def centres(self, prediction: Prediction, plan: Plan) -> bool:
        """Whether the gradients of this attention's map are taken beside the mean of their row."""
        if self.centre == "causal":
            return plan.site.index in causal_sites(prediction.labelled, prediction.bound)
        return self.centre == "always" and not isinstance(plan.site.map, Sampled)

    def step(self, weights: Tensor) -> Tensor:
        """The weights of a step, of which ``weights`` is the sum over its members."""
        return net(weights) if self.net else weights

    def formed_whole(self, members: Sequence[tuple[Plan, float]]) -> bool:
        """Whether no block of a step's map can be worked out without the rest: weights of one pair of tokens,
        of which the sum is clamped, stand in other members or more than once in a map."""
        plan = members[0][0]
        return plan.site.attends and self.net and not (len(members) == 1 and plan.pairs_apart)


MOST = 1 << 26
"""Numbers in the vectors that are carried over the steps at once; where more rows are read, one block of them
after the other."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One backward pass: its gradients, and the rows that are read for it, of one sample or of all."""

    gradients: Gradients | None
    readouts: Sequence[Readout]


def passes_of(prediction: Prediction, gradients: Sequence[Gradients | None]) -> list[Pass]:
    """``gradients``: one for each of the prediction's passes."""
    if len(gradients) == 1:
        return [Pass(gradients[0], prediction.readout)]
    pairs = zip(gradients, prediction.readout, strict=True)
    return [Pass(of_pass, (readout,)) for of_pass, readout in pairs]


def read_rows(
    prediction: Prediction,
    steps: Sequence[tuple[Step, int]],
    passes: Sequence[Pass],
    rules: Rules,
    weigh: Weigh,
) -> list[Tensor]:
    """[sample, token] for each pass: the sum of the rows that carry a sample's score, own entries set aside.

    The passes are of one run and go over the steps side by side; they may be of several targets that are
    read at the same node as the prediction's.
    """
    tokens, behind = prediction.labelled.classified.tokens, prediction.behind(steps)
    plain = [step for step, _ in steps]
    again = uses(plain, rules)
    maps = _maps(prediction, steps, [own.gradients for own in passes], weigh, again)
    places, owners, vectors = _places(prediction, passes)
    sums = [[torch.zeros(())] * len(of_pass) for of_pass in places]
    most = max(MOST // max(owners * tokens, 1), 1)
    for of_pass in passes:
        if isinstance(of_pass.gradients, PassingGradients) and (again or vectors > most):
            of_pass.gradients.hold = True
    for first in range(0, vectors, most):
        block = [[_within(own, first, most) for own in of_pass] for of_pass in places]
        start = _start(prediction, block, (owners, min(most, vectors - first), tokens))
        rows = rows_of(plain, maps, tokens, rules, start, behind)
        for places_of_pass, kept in zip(block, sums, strict=True):
            for sample, own in enumerate(places_of_pass):
                owner, vector, token = own.to(rows.device).unbind(-1)
                rows[owner, vector, token] = 0
                kept[sample] = kept[sample].to(rows) + rows[owner, vector].sum(0)
    return [torch.stack(kept) for kept in sums]


def _places(prediction: Prediction, passes: Sequence[Pass]) -> tuple[list[list[Tensor]], int, int]:
    """For each pass, for each sample, where the rows that are read lie: [row, 3] of (sample of the map, those
    of one pass after those of another; vector; token). And how many samples and vectors there are."""
    batch = prediction.labelled.findings.batch
    filled = [0] * (batch * len(passes))
    places: list[list[Tensor]] = []
    for number, of_pass in enumerate(passes):
        places.append([])
        for pairs in of_pass.readouts:
            own = []
            for sample, token in pairs:
                owner = number * batch + min(sample, batch - 1)
                own.append((owner, filled[owner], token))
                filled[owner] += 1
            places[-1].append(torch.tensor(own, dtype=torch.int64).reshape(-1, 3))
    return places, len(filled), max(filled)


def _within(places: Tensor, first: int, count: int) -> Tensor:
    """Those of some vectors, which are counted from the first of them on."""
    inside = (places[:, 1] >= first) & (places[:, 1] < first + count)
    return places[inside] - torch.tensor([0, first, 0])


def _start(prediction: Prediction, places: Sequence[Sequence[Tensor]], shape: tuple[int, int, int]) -> Tensor:
    """Unit vectors for the rows that are read: [sample, vector, token]."""
    dtype = torch.float32
    for tapped in prediction.run.tapped.values():
        dtype = torch.promote_types(dtype, tapped.dtype)
    start = torch.zeros(shape, dtype=dtype, device=prediction.resolved.scores.device)
    for own in (own for of_pass in places for own in of_pass):
        start[own.to(start.device).unbind(-1)] = 1
    return start


def _maps(
    prediction: Prediction,
    steps: Sequence[tuple[Step, int]],
    gradients: Sequence[Gradients | None],
    weigh: Weigh,
    again: bool,
) -> list[Weights]:
    """The map of each step, as far as products go."""
    labelled = prediction.labelled
    of_site: dict[int, list[tuple[Weights, float]]] = {}
    found: list[Weights] = []
    for step, site in steps:
        plan = labelled.plans[site]
        if site not in of_site:
            own_plans = step_members(labelled.classified, labelled.plans, site)
            if isinstance(weigh, ByHeads) and weigh.formed_whole(own_plans):
                of_site[site] = [(_net(prediction, own_plans, gradients, weigh, again), 1.0)]
            else:
                of_site[site] = [
                    (_map(prediction, member, gradients, weigh, again), share) for member, share in own_plans
                ]
        columns, members = step_columns(plan, step), of_site[site]
        whole = columns is None and len(members) == 1
        own = members[0][0] if whole else Summed(members, columns, len(plan.keys))
        place = prediction.run.tapped[plan.site.tap.name].device
        found.append(own if place == prediction.resolved.scores.device else Elsewhere(own, place))
    return found


def _net(
    prediction: Prediction,
    members: Sequence[tuple[Plan, float]],
    gradients: Sequence[Gradients | None],
    weigh: ByHeads,
    again: bool,
) -> Weights:
    """The map of a step, formed whole."""
    return Formed([partial(_dense_net, weigh, prediction, members, of_pass) for of_pass in gradients], again)


def _dense_net(
    weigh: ByHeads, prediction: Prediction, members: Sequence[tuple[Plan, float]], gradients: Gradients | None
) -> Dense:
    parts = [share * weigh(prediction, plan, _gradient(plan, gradients)) for plan, share in members]
    return Dense(weigh.step(sum(parts[1:], parts[0])))


def _map(
    prediction: Prediction, plan: Plan, gradients: Sequence[Gradients | None], weigh: Weigh, again: bool
) -> Weights:
    if isinstance(weigh, ByHeads) and plan.sampled and plan.site.attends:
        return MapProducts(
            plan,
            prediction.run,
            gradients,
            weigh.head_mean,
            again,
            weigh.net,
            weigh.centres(prediction, plan),
        )
    if not plan.site.attends:
        # rules ask for the sums of its rows too; it is not much larger than the data it is made of
        return Formed([partial(_mixing, prediction, plan, of_pass) for of_pass in gradients], again=True)
    return Formed([partial(_dense, weigh, prediction, plan, of_pass) for of_pass in gradients], again)


def _gradient(plan: Plan, gradients: Gradients | None) -> Tensor | None:
    """That of a site's tapped tensor, which may be worked out only now."""
    return None if gradients is None else gradients.get(plan.site.tap.name)


def _mixing(prediction: Prediction, plan: Plan, gradients: Gradients | None) -> Weights:
    return mixing_products(plan, prediction.run, _gradient(plan, gradients))


def _dense(weigh: Weigh, prediction: Prediction, plan: Plan, gradients: Gradients | None) -> Dense:
    found = weigh(prediction, plan, _gradient(plan, gradients))
    return Dense(weigh.step(found) if isinstance(weigh, ByHeads) else found)
