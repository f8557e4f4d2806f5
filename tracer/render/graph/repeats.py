"""What repeats in an attention graph: equal layers are one block, a run of mixing steps is one box."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import networkx as nx

Graph: TypeAlias = "nx.MultiDiGraph[str]"

LONGEST = 64
"""Steps in the longest block that may repeat."""
SHORTEST = 3
"""Mixing steps in the shortest run that is one box."""


@dataclass(frozen=True)
class Chain:
    """Mixing steps of which each alone reads what the one before made, such as a stack of convolutions."""

    members: tuple[str, ...]


@dataclass(frozen=True)
class Repeat:
    """Equal blocks, one after the other: the layers of an encoder. Each has the same steps in order."""

    copies: tuple[tuple[str | Chain, ...], ...]


Item: TypeAlias = "str | Chain | Repeat"


def sites_of(graph: Graph) -> dict[str, Mapping[str, Any]]:
    """Attentions and mixing steps with their facts, in order of execution."""
    return {name: data for name, data in graph.nodes(data=True) if data.get("type") != "stream"}


def folded(graph: Graph) -> list[Item]:
    """All steps in order of execution, with what repeats taken together.

    Example:
        >>> graph = nx.MultiDiGraph()
        >>> for i in range(3):
        ...     graph.add_node(f"attention:{i}", type="attention", queries="x", module=f"layer.{i}.attn")
        >>> folded(graph)
        [Repeat(copies=(('attention:0',), ('attention:1',), ('attention:2',)))]
    """
    sites = sites_of(graph)
    items = list(_chained(graph, sites))
    looks = [_look(item, sites) for item in items]
    found: list[Item] = []
    place = 0
    while place < len(items):
        period, count = _repeat_at(looks, place)
        block = range(place, place + period * count, period)
        copies = tuple(tuple(items[start : start + period]) for start in block)
        found += [Repeat(copies)] if count > 1 else items[place : place + period]
        place += period * count
    return found


def _chained(graph: Graph, sites: Mapping[str, Mapping[str, Any]]) -> Iterator[str | Chain]:
    run: list[str] = []
    for name in [*sites, None]:
        if run and (name is None or not _follows(graph, sites, run[-1], name)):
            yield from [Chain(tuple(run))] if len(run) >= SHORTEST else run
            run = []
        if name is not None:
            run.append(name)


def _follows(graph: Graph, sites: Mapping[str, Mapping[str, Any]], first: str, second: str) -> bool:
    """Whether both make new tokens, and the second alone reads what the first alone made."""
    if any(sites[name].get("type") != "mixing" or sites[name].get("kind") for name in (first, second)):
        return False
    before, after = _flow(graph.in_edges(second, data=True)), _flow(graph.out_edges(first, data=True))
    return [source for source, _ in before] == [first] and [target for _, target in after] == [second]


def _flow(edges: Any) -> list[tuple[str, str]]:
    return [(source, target) for source, target, data in edges if data.get("role") == "flow"]


_FACTS = ("type", "kind", "op", "size", "heads", "windows", "window", "normaliser")


def _look(item: str | Chain, sites: Mapping[str, Mapping[str, Any]]) -> Hashable:
    """What two steps must have in common to count as the same one in another layer: all but its number."""
    if isinstance(item, Chain):
        return tuple(_look(member, sites) for member in item.members)
    data = sites[item]
    names = (re.sub(r"\d+", "#", str(data.get(name))) for name in ("module", "queries", "keys"))
    return (*names, *(data.get(name) for name in _FACTS))


def _repeat_at(looks: Sequence[Hashable], place: int) -> tuple[int, int]:
    """(steps in the block, how often it comes) of the repeat that covers most; (1, 1) where none is."""
    best = (1, 1)
    for period in range(1, min(LONGEST, (len(looks) - place) // 2) + 1):
        block, count, end = looks[place : place + period], 1, place + period
        while looks[end : end + period] == block:
            count, end = count + 1, end + period
        spared = period * (count - 1)
        if spared >= 2 and period * count > best[0] * best[1]:
            best = (period, count)
    return best
