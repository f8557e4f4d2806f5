"""From classified sites to the scheduler's steps: what each reads, and of which kind each block of columns
is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fxplain.classify import Classified
from fxplain.ledger import Site
from fxplain.maps import Plan
from fxplain.schedule import Step, StepKind


def steps_of(classified: Classified, plans: Mapping[int, Plan]) -> list[tuple[Step, int]]:
    """Steps in execution order, each with the index of its site.

    A site whose keys hold the queries and strangers, without holding all queries, makes two steps that read
    the same state: one over its own tokens, one over the others.
    """
    steps: list[tuple[Step, int]] = []
    of_site: dict[int, list[int]] = {}
    for site, typed in zip(classified.sites, classified.kinds, strict=True):
        plan = plans[site.index]
        kind: StepKind = "self" if typed == "self" else "cross"
        if typed is None:
            kind = "carry" if site.makes_tokens else "join"
        reads = [
            frozenset(s for i in slot.reads for s in of_site.get(i, [])) for slot in (site.rows, site.cols)
        ]
        of_site[site.index] = []
        for block_kind, keys in _blocks(site, kind, plan):
            step = Step(len(steps), plan.queries, keys, block_kind, reads[0], reads[1])
            of_site[site.index].append(step.index)
            steps.append((step, site.index))
    return steps


def _blocks(site: Site, kind: StepKind, plan: Plan) -> list[tuple[StepKind, Tensor]]:
    own = torch.isin(plan.keys, plan.queries)
    if kind == "cross" and bool(own.any()) and not bool(own.all()):
        return [("self", plan.keys[own]), ("cross", plan.keys[~own])]
    return [(kind, plan.keys)]
