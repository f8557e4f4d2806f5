"""How two attention graphs differ: which steps are in one alone, and what is not alike in the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import networkx as nx

Graph: TypeAlias = "nx.MultiDiGraph[str]"
Facts: TypeAlias = Mapping[str, Any]
Pairs: TypeAlias = "list[tuple[int | None, int | None]]"

COMPARED = ("kind", "heads", "size", "windows", "normaliser", "op")
"""What makes up a step's structure. Names of modules, and whether a map is computed in one fused kernel, do
not."""
GAP = 0.35
"""The price of a step that is in one graph alone. Two steps that differ in more than twice this share of what
is compared are not one step that changed."""


@dataclass(frozen=True)
class Change:
    """A step that is in one graph alone, or is not alike in both."""

    what: Literal["added", "removed", "changed"]
    left: Facts | None
    """The step's attributes in the first graph; None where it was added."""
    right: Facts | None
    facts: tuple[tuple[str, Any, Any], ...] = ()
    """What changed: (attribute, in the first graph, in the second). Besides those of :data:`COMPARED`,
    ``queries`` and ``keys`` where it ranges over another stream, ``after`` where it reads other steps."""


@dataclass(frozen=True)
class GraphDiff:
    """All that differs between two attention graphs. Made by :func:`diff`."""

    changes: tuple[Change, ...]
    """In order of execution."""
    same: int
    """How many steps are alike."""
    counts: Mapping[str, tuple[int, int]]
    """Kind of step -> how many are in the first and in the second graph."""

    @property
    def equal(self) -> bool:
        return not self.changes


def diff(left: Graph, right: Graph) -> GraphDiff:
    """Compare two attention graphs by structure: kinds, heads, sizes, windows, streams, and what reads what.

    Steps are matched in order, so that as little as possible differs. Streams are matched by the steps that
    use them, whatever they are called.

    Args:
        left, right: what ``traced.graph`` gives.

    Example:
        >>> import torch, fxplain
        >>> def graph(layers):
        ...     layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        ...     model = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
        ...     return fxplain.trace(model, torch.randn(1, 5, 8)).graph
        >>> found = diff(graph(2), graph(3))
        >>> found.same, [(change.what, change.right["name"]) for change in found.changes]
        (2, [('added', 'layers.2.self_attn')])
    """
    one, two = _steps(left), _steps(right)
    pairs = aligned([facts for _, facts in one], [facts for _, facts in two])
    matched = [(i, j) for i, j in pairs if i is not None and j is not None]
    names = _streams_matched([(one[i][1], two[j][1]) for i, j in matched])
    steps = {one[i][0]: two[j][0] for i, j in matched}
    changes: list[Change] = []
    for i, j in pairs:
        if i is None or j is None:
            before, after = (None if i is None else one[i][1]), (None if j is None else two[j][1])
            changes.append(Change("added" if i is None else "removed", before, after))
            continue
        different = _different(one[i][1], two[j][1], names)
        different += _flow(left, right, one[i][0], two[j][0], steps)
        if different:
            changes.append(Change("changed", one[i][1], two[j][1], tuple(different)))
    return GraphDiff(tuple(changes), len(pairs) - len(changes), _counts(one, two))


def _different(one: Facts, two: Facts, names: Mapping[str, str]) -> list[tuple[str, Any, Any]]:
    """What differs between two steps; ``names`` has the second graph's name of a stream of the first."""
    pairs = [(key, one.get(key), two.get(key)) for key in COMPARED]
    different = [(key, old, new) for key, old, new in pairs if old != new]
    for side in ("queries", "keys"):
        if two[side] not in (one[side], names.get(one[side])):
            different.append((side, one[side], two[side]))
    return different


def _steps(graph: Graph) -> list[tuple[str, Facts]]:
    """The attentions and mixings in order of execution; windows as one text, empty where there are none."""
    steps: list[tuple[str, Facts]] = []
    for name, data in graph.nodes(data=True):
        if data["type"] != "stream":
            count = int(data.get("windows", 1))
            steps.append((name, {**data, "windows": f"{count} of {data['window']}" if count > 1 else ""}))
    return steps


def _counts(*graphs: Sequence[tuple[str, Facts]]) -> dict[str, tuple[int, int]]:
    kinds = ([f["kind" if f["type"] == "attention" else "type"] for _, f in steps] for steps in graphs)
    one, two = map(Counter, kinds)
    return {kind: (one[kind], two[kind]) for kind in sorted({*one, *two})}


def distance(one: Facts, two: Facts) -> float:
    """The share of attributes that differ; infinite between an attention and a mixing."""
    if one["type"] != two["type"]:
        return float("inf")
    keys = [key for key in COMPARED if key in one or key in two]
    return sum(bool(one.get(key) != two.get(key)) for key in keys) / len(keys)


def aligned(one: Sequence[Facts], two: Sequence[Facts]) -> Pairs:
    """The cheapest alignment of two sequences (Needleman and Wunsch 1970): pairs of indices, None for a gap.

    Of several that are as cheap, the one whose gaps come late: layers are added at the end.
    """
    costs = [[GAP * (i + j) for j in range(len(two) + 1)] for i in range(len(one) + 1)]
    for i, before in enumerate(one):
        row, above = costs[i + 1], costs[i]
        for j, after in enumerate(two):
            row[j + 1] = min(above[j] + distance(before, after), above[j + 1] + GAP, row[j] + GAP)
    pairs: Pairs = []
    i, j = len(one), len(two)
    while i or j:
        if j and costs[i][j] == costs[i][j - 1] + GAP:
            j -= 1
            pairs.append((None, j))
        elif i and costs[i][j] == costs[i - 1][j] + GAP:
            i -= 1
            pairs.append((i, None))
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _streams_matched(pairs: Sequence[tuple[Facts, Facts]]) -> dict[str, str]:
    """Which stream of the second graph stands for one of the first: the one most often in its place."""
    votes = Counter((one[side], two[side]) for one, two in pairs for side in ("queries", "keys"))
    ranked = sorted(votes, key=lambda pair: (-votes[pair], pair[0] != pair[1]))
    names: dict[str, str] = {}
    for old, new in ranked:
        if old not in names and new not in names.values():
            names[old] = new
    return names


def _flow(
    left: Graph, right: Graph, one: str, two: str, steps: Mapping[str, str]
) -> list[tuple[str, Any, Any]]:
    """Whether a step reads other steps than its counterpart; not told where these are in one graph alone."""
    before, after = _sources(left, one), _sources(right, two)
    if not before <= steps.keys() or not after <= set(steps.values()):
        return []
    if {steps[name] for name in before} == after:
        return []
    return [("after", ", ".join(sorted(before)), ", ".join(sorted(after)))]


def _sources(graph: Graph, name: str) -> set[str]:
    return {source for source, _, data in graph.in_edges(name, data=True) if data.get("role") == "flow"}
