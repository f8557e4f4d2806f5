"""What is held at its first values while tokens are moved: weights between tokens.

What a softmax takes of a row is nothing that its tokens hold. What weights do with values is the claim of
the site that they belong to, so what leads into weights alone carries nothing to a token.
"""

from __future__ import annotations

from torch import fx

from fxplain.attention.labelling import is_pointwise
from fxplain.labels.findings import Findings
from fxplain.labels.labels import codes_of


def weights_of(graph: fx.Graph, findings: Findings) -> frozenset[fx.Node]:
    """The tensors that hold weights between tokens, and what is made of these alone: statistics of rows."""
    sites = [part for site in findings.ledger.sites for part in (site, *site.map.parts)]
    maps = {site.map.held for site in sites}
    found: set[fx.Node] = set()
    for node in graph.nodes:
        several = any(len({slot.token_axes for slot in part.active}) > 1 for part in findings.parts(node))
        over_tokens = findings.ledger.remarks.softmaxes.get(node.name, (node, ""))[1] == "tokens"
        labelled = [used for used in node.all_input_nodes if any(p.labelled for p in findings.parts(used))]
        made = bool(labelled) and all(used in found for used in labelled)
        if several or over_tokens or node in maps or made:
            found.add(node)
    return frozenset(found)


def scores_in_the_making(
    graph: fx.Graph, findings: Findings, weights: frozenset[fx.Node]
) -> frozenset[fx.Node]:
    """Tensors in which tokens meet place by place, as queries meet keys one diagonal at a time, and what is
    made of them, if every way from there leads into weights."""
    leading: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in weights or (node.users and leading.issuperset(node.users)):
            leading.add(node)
    found: set[fx.Node] = set()
    for node in graph.nodes:
        met = _meets(node, findings) or not found.isdisjoint(node.all_input_nodes)
        if node in leading and met:
            found.add(node)
    return frozenset(found - weights)


def _meets(node: fx.Node, findings: Findings) -> bool:
    """Whether an elementwise operation has operands of several tokens, or other ones than its result."""
    slots = [slot for used in node.all_input_nodes for slot in findings.value(used).active]
    alike = all(slot.labels.shape == slots[0].labels.shape for slot in slots)
    same = alike and all(bool((codes_of(s.labels) == codes_of(slots[0].labels)).all()) for s in slots)
    return is_pointwise(node) and len(slots) > 1 and not same
