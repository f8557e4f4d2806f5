"""Methods that weigh every attention and run a table of rules over them: relevancy, rollout and their kin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxplain.attention.layers import Layers, chosen_sites
from fxplain.attention.plan import Plan
from fxplain.attribution.prediction import Prediction, only
from fxplain.attribution.row_mode import ByHeads, Weigh, passes_of, read_rows
from fxplain.errors import MethodError
from fxplain.maps.weights import mixing_weights
from fxplain.run.replay import Gradients
from fxplain.run.target import Readout
from fxplain.schedule.row_schedule import obstacle
from fxplain.schedule.rules_over_steps import Relevancy, Rules, Step, schedule
from fxplain.schedule.steps import step_columns, step_members


@dataclass(frozen=True)
class Explained:
    """What a method answers with."""

    rows: Tensor
    """[batch, token]: the relevance of every token to each sample's score."""
    matrices: Tensor | None = None
    """[batch, token, token]: R after all steps, where the method has one."""
    notes: tuple[str, ...] = ()
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Input -> relevance of its elements, where the method goes that far."""
    aside: bool = False
    """Whether the own entries of the rows that are read were set aside."""
    mode: str = ""
    """How the schedule was run, of methods that have one."""


by_heads = ByHeads


@dataclass(frozen=True)
class Scheduled:
    """One way to explain: a table of rules, how attentions are weighed, and which layers take part."""

    rules: Rules
    weigh: Weigh
    gradients: bool
    """Whether ``weigh`` gets gradients; without, mixings weigh all tokens alike."""
    layers: Layers | None = None
    """Layers that the method itself is confined to."""

    def __call__(self, prediction: Prediction) -> Explained:
        steps = self.steps(prediction)
        count = len(prediction.passes)
        gradients = prediction.gradients if self.gradients else (None,) * count
        if self.by_rows(prediction, steps):
            rows = [
                read_rows(prediction, steps, [of_pass], self.rules, self.weigh)[0]
                for of_pass in passes_of(prediction, gradients)
            ]
            return Explained(torch.cat(rows), aside=True, mode="rows")
        relevancies = [self.relevancy(prediction, steps, of_pass) for of_pass in gradients]
        return read(prediction, steps, prediction.per_sample(relevancies))

    def together(self, predictions: Sequence[Prediction]) -> list[Explained]:
        """Several targets of one run: in row mode each map is rebuilt once for all of them, where they are
        read at the same node."""
        first = predictions[0]
        steps = self.steps(first)
        alike = all(
            other.labelled is first.labelled and other.behind(steps) == first.behind(steps)
            for other in predictions
        )
        if not (alike and isinstance(self.weigh, ByHeads) and self.by_rows(first, steps)):
            return [self(prediction) for prediction in predictions]
        found = [
            passes_of(p, p.gradients if self.gradients else (None,) * len(p.passes)) for p in predictions
        ]
        flat = [of_pass for passes in found for of_pass in passes]
        rows = iter(read_rows(first, steps, flat, self.rules, self.weigh))
        return [
            Explained(torch.cat([next(rows) for _ in passes]), aside=True, mode="rows") for passes in found
        ]

    def by_rows(self, prediction: Prediction, steps: Sequence[tuple[Step, int]]) -> bool:
        """Whether row mode runs: where it can, unless matrix mode is asked for.

        Raises:
            MethodError: row mode is asked for, and cannot be had.
        """
        if prediction.mode == "matrix":
            return False
        tokens = prediction.labelled.classified.tokens
        reason = obstacle([step for step, _ in steps], tokens, self.rules)
        if reason is not None and prediction.mode in ("rows", "checkpoint"):
            raise MethodError(
                "the schedule cannot be run in row mode",
                expected="rules with a form for rows, and no co-attention",
                found=reason,
                hint="leave mode= out: matrix mode is taken where row mode cannot be",
            )
        return reason is None

    def steps(self, prediction: Prediction) -> tuple[tuple[Step, int], ...]:
        """The steps that take part."""
        if self.layers is None:
            return prediction.steps
        if prediction.chosen is not None:
            raise MethodError(
                "this method has its own range of layers",
                expected=f"no layers=; it takes layers={self.layers!r}",
                found="layers= given",
                hint="use the method that it is the ablation of",
            )
        classified = prediction.labelled.classified
        mixing = {site.index for site in classified.sites if not site.attends}
        return only(prediction.steps, chosen_sites(classified, self.layers) | mixing)

    def relevancy(
        self, prediction: Prediction, steps: Sequence[tuple[Step, int]], gradients: Gradients | None
    ) -> Relevancy:
        """The relevancy of one backward pass."""
        plans = prediction.labelled.plans
        weights: dict[int, Tensor] = {}
        for site in dict.fromkeys(site for _, site in steps):
            members = step_members(prediction.labelled.classified, plans, site)
            own = [share * self._weights(prediction, plan, gradients) for plan, share in members]
            total = sum(own[1:], own[0])
            weights[site] = self.weigh.step(total) if isinstance(self.weigh, ByHeads) else total
        device = prediction.resolved.scores.device  # of a model on several devices, one for all of R
        blocks = [step_weights(weights[site], plans[site], step).to(device) for step, site in steps]
        return schedule(
            [step for step, _ in steps], blocks, prediction.labelled.classified.tokens, self.rules
        )

    def _weights(self, prediction: Prediction, plan: Plan, gradients: Gradients | None) -> Tensor:
        gradient = None if gradients is None else gradients.get(plan.site.tap.name)
        if plan.site.attends:
            return self.weigh(prediction, plan, gradient)
        return mixing_weights(plan, prediction.run, gradient)


def step_weights(weights: Tensor, plan: Plan, step: Step) -> Tensor:
    """The columns of a site's weights that one step takes (a mixed site makes two steps)."""
    columns = step_columns(plan, step)
    return weights if columns is None else weights[..., columns.to(weights.device)]


def read(
    prediction: Prediction, steps: Sequence[tuple[Step, int]], relevancies: Sequence[Relevancy]
) -> Explained:
    """The rows that carry each sample's score, and R after all steps."""
    tokens = prediction.labelled.classified.tokens
    behind = prediction.behind(steps)
    everything = frozenset(step.index for step, _ in steps)
    rows, matrices = [], []
    for sample, (relevancy, pairs) in enumerate(zip(relevancies, prediction.readout, strict=True)):
        rows.append(_row(relevancy, pairs, behind, tokens))
        if sample == 0 or relevancy is not relevancies[sample - 1]:
            full = relevancy.rows(torch.arange(tokens), everything)
        matrices.append(_matrix(full, sample, pairs, prediction))
    return Explained(torch.stack(rows), torch.stack(matrices), aside=True, mode="matrix")


def _row(relevancy: Relevancy, pairs: Readout, behind: frozenset[int], tokens: int) -> Tensor:
    """The readout: the sum of the rows that carry the score, each with its own entry set aside."""
    total = None
    for sample, token in pairs:
        row = relevancy.rows(torch.tensor([token]), behind)[min(sample, relevancy.batch - 1), 0].clone()
        row[token] = 0
        total = row if total is None else total + row
    assert total is not None
    return total


def _matrix(full: Tensor, sample: int, pairs: Readout, prediction: Prediction) -> Tensor:
    """R after all steps for one explained sample; spaces read from another sample come from there."""
    owners = {owner for owner, _ in pairs}
    if len(owners) == 1:
        sample = owners.pop()
    matrix = full[min(sample, len(full) - 1)]
    for owner, token in pairs:
        if owner != sample:
            spaces = prediction.labelled.classified.spaces
            space = next(s for s in spaces if s.start <= token < s.start + s.size)
            own = slice(space.start, space.start + space.size)
            matrix = matrix.clone()
            matrix[own] = full[owner, own]
    return matrix
