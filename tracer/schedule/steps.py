"""From classified sites to the scheduler's steps: what each reads, and of which kind each block of columns
is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fxplain.attention.classify import Classified
from fxplain.attention.plan import Plan
from fxplain.labels.flows import Site
from fxplain.schedule.rules_over_steps import Step, StepKind


def steps_of(classified: Classified, plans: Mapping[int, Plan]) -> list[tuple[Step, int]]:
    """Steps in execution order, each with the index of its site.

    Heads whose outputs are laid side by side make one step, with the index of the last of them. A site whose
    keys hold the queries and strangers, without holding all queries, makes two steps that read the same
    state: one over its own tokens, one over the others.
    """
    steps: list[tuple[Step, int]] = []
    of_site: dict[int, list[int]] = {}
    for site, typed in zip(classified.sites, classified.kinds, strict=True):
        plan = plans[site.index]
        members = classified.members(site.index)
        if site.index != members[-1]:
            continue
        kind: StepKind = "self" if typed == "self" else "cross"
        if typed is None:
            kind = "carry" if site.makes_tokens else "join"
        reads = [
            frozenset(s for i in slot.reads for s in of_site.get(i, [])) for slot in (site.rows, site.cols)
        ]
        of_site.update(dict.fromkeys(members, made := []))
        for block_kind, keys in _blocks(site, kind, plan):
            step = Step(len(steps), plan.queries, keys, block_kind, reads[0], reads[1])
            made.append(step.index)
            steps.append((step, site.index))
    return steps


def _blocks(site: Site, kind: StepKind, plan: Plan) -> list[tuple[StepKind, Tensor]]:
    own = torch.isin(plan.keys, plan.queries)
    if kind == "cross" and bool(own.any()) and not bool(own.all()):
        return [("self", plan.keys[own]), ("cross", plan.keys[~own])]
    return [(kind, plan.keys)]


def step_members(classified: Classified, plans: Mapping[int, Plan], site: int) -> list[tuple[Plan, float]]:
    """The plans of the attentions that make up a step, each with its share of the heads."""
    members = [plans[index] for index in classified.members(site)]
    heads = [plan.folded * math.prod(plan.full[axis] for axis in plan.heads) for plan in members]
    return [(plan, own / sum(heads)) for plan, own in zip(members, heads, strict=True)]


def step_columns(plan: Plan, step: Step) -> Tensor | None:
    """The columns of a site's map that one step takes, as places among its keys; None for all."""
    return None if len(step.keys) == len(plan.keys) else torch.searchsorted(plan.keys, step.keys)
