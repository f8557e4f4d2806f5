"""Row mode on a prediction: the rows that are read, from products of vectors with each attention's map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fxplain.map_products import Formed, MapProducts, Summed
from fxplain.maps import HeadMean, Plan, attention_weights
from fxplain.mixing_products import mixing_products
from fxplain.prediction import Gradients, Prediction
from fxplain.replay import tap_of
from fxplain.row_schedule import rows_of, uses
from fxplain.rules.adjoint import Dense, Weights
from fxplain.schedule import Rules, Step
from fxplain.steps import step_columns, step_members
from fxplain.target import Readout

Weigh = Callable[[Prediction, Plan, "Tensor | None"], Tensor]
"""(prediction, an attention's plan, gradient of its tapped tensor) -> weights [batch, query, key]."""


@dataclass(frozen=True)
class ByHeads:
    """Weights from a function of maps, gradients and the axes of the heads, such as eq. 5."""

    head_mean: HeadMean

    def __call__(self, prediction: Prediction, plan: Plan, gradient: Tensor | None) -> Tensor:
        return attention_weights(plan, prediction.run, gradient, self.head_mean)


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
    maps = _maps(prediction, steps, [own.gradients for own in passes], weigh, uses(plain, rules))
    start, places = _start(prediction, passes, tokens)
    rows = rows_of(plain, maps, tokens, rules, start, behind)
    found = []
    for of_pass in places:
        for place in (place for own in of_pass for place in own):
            rows[place] = 0
        sums = [torch.stack([rows[owner, vector] for owner, vector, _ in own]).sum(0) for own in of_pass]
        found.append(torch.stack(sums))
    return found


def _start(
    prediction: Prediction, passes: Sequence[Pass], tokens: int
) -> tuple[Tensor, list[list[list[tuple[int, int, int]]]]]:
    """Unit vectors for all rows that are read, and for each pass, for each sample, where its own lie:
    (sample of the map, those of one pass after those of another; vector; token)."""
    batch = prediction.labelled.findings.batch
    filled = [0] * (batch * len(passes))
    places: list[list[list[tuple[int, int, int]]]] = []
    for number, of_pass in enumerate(passes):
        places.append([])
        for pairs in of_pass.readouts:
            places[-1].append([])
            for sample, token in pairs:
                owner = number * batch + min(sample, batch - 1)
                places[-1][-1].append((owner, filled[owner], token))
                filled[owner] += 1
    scores = prediction.resolved.scores
    dtype = torch.float32
    for tapped in prediction.run.tapped.values():
        dtype = torch.promote_types(dtype, tapped.dtype)
    start = torch.zeros(len(filled), max(filled), tokens, dtype=dtype, device=scores.device)
    for place in (place for of_pass in places for own in of_pass for place in own):
        start[place] = 1
    return start, places


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
            of_site[site] = [
                (_map(prediction, member, gradients, weigh, again), share)
                for member, share in step_members(labelled.classified, labelled.plans, site)
            ]
        columns, members = step_columns(plan, step), of_site[site]
        whole = columns is None and len(members) == 1
        found.append(members[0][0] if whole else Summed(members, columns, len(plan.keys)))
    return found


def _map(
    prediction: Prediction, plan: Plan, gradients: Sequence[Gradients | None], weigh: Weigh, again: bool
) -> Weights:
    tapped = tap_of(plan.site).name
    own = [None if of_pass is None else of_pass.get(tapped) for of_pass in gradients]
    if isinstance(weigh, ByHeads) and plan.sampled and plan.site.attends:
        return MapProducts(plan, prediction.run, own, weigh.head_mean, again)
    if not plan.site.attends:
        # rules ask for the sums of its rows too; it is not much larger than the data it is made of
        products = [partial(mixing_products, plan, prediction.run, gradient) for gradient in own]
        return Formed(products, again=True)
    return Formed([partial(_dense, weigh, prediction, plan, gradient) for gradient in own], again)


def _dense(weigh: Weigh, prediction: Prediction, plan: Plan, gradient: Tensor | None) -> Dense:
    return Dense(weigh(prediction, plan, gradient))
