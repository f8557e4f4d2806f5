"""Which self-attentions are causal: no query sees a later token.

The fact is looked at once for each layout of inputs, never sample by sample: a sample is explained as it
would be alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fxplain.attention.labelled import Labelled
from fxplain.attention.plan import Plan
from fxplain.attribution.looking import look, some_rows
from fxplain.labels.call import literal, op_name
from fxplain.labels.flows import Kernel, Site
from fxplain.run.mask_flags import KERNEL
from fxplain.run.replay import Replay

QUERIES = 8
"""How many queries of an attention are looked at, to see whether it is causal."""


def causal_sites(labelled: Labelled, bound: Mapping[str, Tensor]) -> frozenset[int]:
    """The sites of the self-attentions in which no query attends to a later token.

    A kernel's own flag says it. For the others the graph is run once, for each layout of inputs.
    """
    if not labelled.causal:
        labelled.causal.append(frozenset(_looked_for(labelled, bound)))
    return labelled.causal[0]


def _looked_for(labelled: Labelled, bound: Mapping[str, Tensor]) -> set[int]:
    steps = zip(labelled.classified.sites, labelled.classified.steps, strict=True)
    own = [
        (site, torch.tensor(step.queries.tokens))
        for site, step in steps
        if site.role == "attention" and step.kind == "self" and len(step.queries.tokens) > 1
    ]
    flags = {site.index: _flag(site) for site, _ in own}
    found = {site for site, causal in flags.items() if causal}
    orders = {site.index: order for site, order in own}

    def see(plan: Plan, run: Replay) -> bool:
        order = orders[plan.site.index]
        if len(order) == len(plan.queries) and is_causal(plan, run, order):
            found.add(plan.site.index)
        return False

    look(labelled, bound, [site for site, _ in own if flags[site.index] is None], see)
    return found


def _flag(site: Site) -> bool | None:
    """Whether a kernel says that it is causal; None where it has a mask, or is no such kernel."""
    if not isinstance(site.map, Kernel) or op_name(site.node) != KERNEL:
        return None
    causal = bool(literal(site.node, "is_causal"))
    return causal if causal or literal(site.node, "attn_mask") is None else None


def is_causal(plan: Plan, run: Replay, order: Tensor) -> bool:
    """Whether the queries of a self-attention give later tokens no weight, and earlier ones some.

    Rows that weigh all keys alike, as those of padding may, say nothing.

    Args:
        order: the tokens of its stream, two or more, as they stand there.
    """
    place = torch.full((int(max(plan.queries.max(), plan.keys.max(), order.max())) + 1,), -1)
    place[order] = torch.arange(len(order))
    some = torch.linspace(0, len(order) - 2, min(QUERIES, len(order) - 1)).long()
    queries = torch.searchsorted(plan.queries, order[some]).sort().values
    rows = some_rows(plan, run, queries).cpu()
    telling = (rows.amax(-1) > rows.amin(-1)) & (rows.amax(-1) > 0)
    later = place[plan.keys][None] > place[plan.queries[queries]][:, None]
    return bool(telling.any()) and not bool(((rows * later).amax(-1) > 0)[telling].any())
