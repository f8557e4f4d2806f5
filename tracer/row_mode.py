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


def read_rows(
    prediction: Prediction,
    steps: Sequence[tuple[Step, int]],
    gradients: Sequence[Gradients | None],
    rules: Rules,
    weigh: Weigh,
) -> Tensor:
    """[sample, token]: for each sample the sum of the rows that carry its score, own entries set aside.

    ``gradients``: one for each of the prediction's passes.
    """
    tokens, behind = prediction.labelled.classified.tokens, prediction.behind(steps)
    plain = [step for step, _ in steps]
    found: list[Tensor] = []
    for place, of_pass in enumerate(gradients):
        readouts = prediction.readout if len(gradients) == 1 else prediction.readout[place : place + 1]
        maps = _maps(prediction, steps, of_pass, weigh, uses(plain, rules))
        start, places = _start(prediction, readouts, tokens)
        rows = rows_of(plain, maps, tokens, rules, start, behind)
        for own in places:
            for owner, vector, token in own:
                rows[owner, vector, token] = 0
            found.append(torch.stack([rows[owner, vector] for owner, vector, _ in own]).sum(0))
    return torch.stack(found)


def _start(
    prediction: Prediction, readouts: Sequence[Readout], tokens: int
) -> tuple[Tensor, list[list[tuple[int, int, int]]]]:
    """Unit vectors for all rows that are read, and for each sample where its own lie:
    (sample of the map, vector, token)."""
    batch = prediction.labelled.findings.batch
    filled = [0] * batch
    places: list[list[tuple[int, int, int]]] = []
    for pairs in readouts:
        places.append([])
        for sample, token in pairs:
            owner = min(sample, batch - 1)
            places[-1].append((owner, filled[owner], token))
            filled[owner] += 1
    scores = prediction.resolved.scores
    dtype = torch.float32
    for tapped in prediction.run.tapped.values():
        dtype = torch.promote_types(dtype, tapped.dtype)
    start = torch.zeros(batch, max(filled), tokens, dtype=dtype, device=scores.device)
    for own in places:
        for place in own:
            start[place] = 1
    return start, places


def _maps(
    prediction: Prediction,
    steps: Sequence[tuple[Step, int]],
    gradients: Gradients | None,
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
    prediction: Prediction, plan: Plan, gradients: Gradients | None, weigh: Weigh, again: bool
) -> Weights:
    gradient = None if gradients is None else gradients.get(tap_of(plan.site).name)
    if not plan.site.attends:
        # rules ask for the sums of its rows too; it is not much larger than the data it is made of
        return Formed(partial(mixing_products, plan, prediction.run, gradient), again=True)
    if isinstance(weigh, ByHeads) and plan.sampled:
        return MapProducts(plan, prediction.run, gradient, weigh.head_mean, again)
    return Formed(lambda: Dense(weigh(prediction, plan, gradient)), again)
