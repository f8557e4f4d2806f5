"""``method="auto"``: which method explains, by a fact of the graph, and why.

The papers' relevancy, unless some self-attention is causal. There every query can see the first tokens, and
attention that has nothing to say is parked on them: relevancy adds it up (docs/results.md), and net relevancy
lets it cancel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fxplain.attention.labelled import Labelled
from fxplain.attribution.causal import causal_sites
from fxplain.attribution.sinks import NET
from fxplain.attribution.table import AUTO, Method, method_named

PLAIN = "relevancy"


def settled(
    methods: Sequence[Method], labelled: Labelled, bound: Mapping[str, Tensor]
) -> tuple[list[Method], dict[str, str]]:
    """The methods with ``auto`` taken for the one that it is here; and by its name a note that says why.

    There is no note where it is the papers' relevancy, or where the method is asked for by its name too.
    """
    if not any(method.name == AUTO for method in methods):
        return list(methods), {}
    causal = causal_sites(labelled, bound)
    name = NET if causal else PLAIN
    chosen = [method_named(name) if method.name == AUTO else method for method in methods]
    unique = list({method.name: method for method in chosen}.values())
    if not causal or any(method.name == name for method in methods):
        return unique, {}
    node = labelled.classified.sites[min(causal)].node.name
    found = next(a for a in labelled.classified.attentions if a.node == node)
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
