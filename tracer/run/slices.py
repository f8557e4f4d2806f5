"""Where a graph is cut to be run again slice by slice: between attentions, where little is alive."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import fx

from fxplain.capture.passes.clean import draws
from fxplain.labels.call import aten, op_name
from fxplain.labels.flows import Site

LOOKS = aten("reshape contiguous dropout to flatten unflatten")
"""Operations that mostly hand on what they are given, though their schemas do not say so."""
WORTH = 4
"""How many times what a cut keeps alive must be made between it and the cut before it."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Operations that lie side by side in the order of execution."""

    nodes: tuple[fx.Node, ...]
    taken: tuple[fx.Node, ...]
    """Results of earlier slices that are used: by its operations, or to rebuild one of its attentions."""
    draws: bool
    """Whether random numbers are drawn in it."""


def slices_of(
    graph: fx.Graph, sites: Iterable[Site], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Slice, ...]:
    """The graph in slices, with at most one cut before each attention (or mixing).

    What lies before the first of them is a slice of its own as far as that is worth its while: no gradient
    goes there, so it is never run again.

    Args:
        graph: flat, with the inputs as placeholders.
        sites: the attentions and mixings.
        shapes: of the tensors, by node.
    """
    nodes = [node for node in graph.nodes if node.op in ("call_function", "get_attr")]
    place = {node: number for number, node in enumerate(nodes)}
    uses = [(place[node], used) for node in nodes for used in node.all_input_nodes if used in place]
    taps: dict[int, None] = {}
    for site in sites:
        if (at := place.get(site.tap)) is not None:
            taps[at] = None
            # what an attention is rebuilt from must be alive with it, or be made in its slice
            uses += [(at, node) for node in site.keeps if place.get(node, at) < at]
    cuts = _Cuts(nodes, place, uses, shapes).before(sorted(taps))
    bounds = [0, *cuts, len(nodes)]
    number = [n for n, (a, b) in enumerate(pairwise(bounds)) for _ in range(a, b)]
    taken: list[dict[fx.Node, None]] = [{} for _ in bounds[1:]]
    for user, used in uses:
        if number[user] != number[place[used]]:
            taken[number[user]][used] = None
    return tuple(
        Slice(tuple(nodes[a:b]), tuple(own), any(draws(node) for node in nodes[a:b]))
        for (a, b), own in zip(pairwise(bounds), taken, strict=True)
    )


class _Cuts:
    """How much is made, and how much stays alive, between two places of a graph."""

    def __init__(
        self,
        nodes: Sequence[fx.Node],
        place: Mapping[fx.Node, int],
        uses: Iterable[tuple[int, fx.Node]],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.last = list(range(len(nodes)))
        for user, used in uses:
            self.last[place[used]] = max(self.last[place[used]], user)
        self.sizes = [prod(shapes.get(node.name, ())) for node in nodes]
        self.fresh = [0 if _is_view(node) else size for node, size in zip(nodes, self.sizes, strict=True)]
        self.several = [any(user.target is operator.getitem for user in node.users) for node in nodes]

    def before(self, taps: Sequence[int]) -> list[int]:
        """The numbers of the nodes that begin a slice, for attentions at these places."""
        cuts: list[int] = []
        start = low = 0
        for tap in taps:
            best = self._best(start, max(low, start + 1), tap)
            if best is not None:
                cuts.append(best)
                start = best
            low = tap + 1
        return cuts

    def _best(self, start: int, low: int, high: int) -> int | None:
        """The last of the places from ``low`` to ``high`` where a cut after ``start`` gains most."""
        found, most = None, 0.0
        made = alive = several = 0
        ends: dict[int, list[int]] = {}
        for at in range(start, high):  # then the cut may be behind this node
            made += self.fresh[at]
            for gone in ends.pop(at, ()):
                alive -= self.sizes[gone]
                several -= self.several[gone]
            if self.last[at] > at:
                alive += self.sizes[at]
                several += self.several[at]
                ends.setdefault(self.last[at], []).append(at)
            gain = made / WORTH - alive
            if at + 1 >= low and not several and gain > 0 and gain >= most:
                found, most = at + 1, gain
        return found


def _is_view(node: fx.Node) -> bool:
    """Whether an operation makes nothing but another look at what it was given, as far as can be told."""
    returns = getattr(getattr(node.target, "_schema", None), "returns", ())
    shown = any(value.alias_info is not None for value in returns)
    return shown or op_name(node) in LOOKS or node.target is operator.getitem
