"""``method="auto"``: which method explains, by a fact of the graph, and why.

The papers' relevancy, unless some self-attention is causal. There every query can see the first tokens, and
attention that has nothing to say is parked on them: relevancy adds it up (docs/results.md), and net relevancy
lets it cancel. The fact is looked at once for each layout of inputs, never sample by sample: a sample is
explained as it would be alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxplain.attention.labelled import Labelled
from fxplain.attention.plan import Plan
from fxplain.attribution.looking import look, some_rows
from fxplain.attribution.sinks import NET
from fxplain.attribution.table import AUTO, Method, method_named
from fxplain.labels.call import literal, op_name
from fxplain.labels.flows import Kernel, Site
from fxplain.run.mask_flags import KERNEL
from fxplain.run.replay import Replay

PLAIN = "relevancy"
QUERIES = 8
"""How many queries of an attention are looked at, to see whether it is causal."""


def settled(
    methods: Sequence[Method], labelled: Labelled, bound: Mapping[str, Tensor]
) -> tuple[list[Method], dict[str, str]]:
    """The methods with ``auto`` taken for the one that it is here; and by its name a note that says why.

    There is no note where it is the papers' relevancy, or where the method is asked for by its name too.
    """
    if not any(method.name == AUTO for method in methods):
        return list(methods), {}
    site = causal_attention(labelled, bound)
    name = PLAIN if site is None else NET
    chosen = [method_named(name) if method.name == AUTO else method for method in methods]
    unique = list({method.name: method for method in chosen}.values())
    if site is None or any(method.name == name for method in methods):
        return unique, {}
    found = next(a for a in labelled.classified.attentions if a.node == site.node.name)
    return unique, {name: _why(found.module or found.name)}


def settled_one(
    method: Method, labelled: Labelled, bound: Mapping[str, Tensor]
) -> tuple[Method, tuple[str, ...]]:
    """Likewise of one method, with the notes that its results have besides."""
    (found,), why = settled([method], labelled, bound)
    return found, tuple(why.values())


def _why(where: str) -> str:
    return (
        f"method='auto' took {NET}: attention in {where} is causal (no query sees later tokens), and there "
        f"relevancy piles up on the first tokens; the papers' method is method={PLAIN!r}"
    )


def causal_attention(labelled: Labelled, bound: Mapping[str, Tensor]) -> Site | None:
    """A self-attention in which no query attends to a later token; None if there is none.

    A kernel's own flag says it. Else the graph is run up to the first, once for each layout of inputs.
    """
    if not labelled.causal:
        labelled.causal.append(_looked_for(labelled, bound))
    return labelled.causal[0]


def _looked_for(labelled: Labelled, bound: Mapping[str, Tensor]) -> Site | None:
    found: list[Site] = []

    def see(plan: Plan, run: Replay) -> bool:
        order = orders[plan.site.index]
        if len(order) == len(plan.queries) and is_causal(plan, run, order):
            found.append(plan.site)
        return bool(found)

    steps = zip(labelled.classified.sites, labelled.classified.steps, strict=True)
    own = [(site, step.queries) for site, step in steps if site.role == "attention" and step.kind == "self"]
    flags = {site.index: _flag(site) for site, _ in own}
    flagged = [site for site, queries in own if flags[site.index] and len(queries.tokens) > 1]
    if flagged:
        return flagged[0]
    orders = {site.index: torch.tensor(queries.tokens) for site, queries in own}
    look(labelled, bound, [site for site, _ in own if flags[site.index] is None], see)
    return found[0] if found else None


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
        order: the tokens of its stream, as they stand there.
    """
    place = torch.full((int(max(plan.queries.max(), plan.keys.max(), order.max())) + 1,), -1)
    place[order] = torch.arange(len(order))
    some = torch.linspace(0, len(order) - 2, min(QUERIES, len(order) - 1)).long() if len(order) > 1 else None
    if some is None:
        return False
    queries = torch.searchsorted(plan.queries, order[some]).sort().values
    rows = some_rows(plan, run, queries).cpu()
    telling = (rows.amax(-1) > rows.amin(-1)) & (rows.amax(-1) > 0)
    later = place[plan.keys][None] > place[plan.queries[queries]][:, None]
    return bool(telling.any()) and not bool(((rows * later).amax(-1) > 0)[telling].any())
