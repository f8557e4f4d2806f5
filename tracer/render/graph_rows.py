"""The attention graph put in order for drawing: which row and which lane each attention stands in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import networkx as nx

Graph: TypeAlias = "nx.MultiDiGraph[str]"


@dataclass(frozen=True)
class Site:
    """One box: an attention, a mixing step, or a chain of mixing steps drawn as one."""

    name: str
    kind: str
    queries: str
    keys: str
    depth: int
    order: int
    """Place among all sites; breaks ties."""
    facts: Mapping[str, Any]
    """The node's attributes."""
    before: frozenset[str]
    """The sites whose results reach this one directly."""
    members: tuple[Mapping[str, Any], ...] = ()
    """Attributes of the steps of a chain, in order; empty for a single one."""


@dataclass(frozen=True)
class Rows:
    """The drawing's plan: rows from top to bottom, lanes from left to right."""

    rows: tuple[tuple[Site, ...], ...]
    lanes: Mapping[str, int]
    """Stream -> lane; streams that follow one another may share one."""
    streams: Mapping[str, Mapping[str, Any]]
    feeds: Mapping[str, tuple[str, ...]]
    """Site -> streams of other lanes that flow into it, other than as its keys."""

    @property
    def lane_count(self) -> int:
        return 1 + max(self.lanes.values(), default=-1)


def plan(graph: Graph) -> Rows:
    """Rows by depth in the dataflow, lanes by stream; the same graph always gives the same plan."""
    streams = {data["name"]: data for _, data in graph.nodes(data=True) if data.get("type") == "stream"}
    sites = _join_chains(_sites(graph))
    depths = sorted({site.depth for site in sites})
    rows = tuple(tuple(site for site in sites if site.depth == depth) for depth in depths)
    lanes = _lanes(rows)
    return Rows(rows, lanes, streams, _feeds(rows, lanes))


def _sites(graph: Graph) -> list[Site]:
    named = [(name, data) for name, data in graph.nodes(data=True) if data.get("type") != "stream"]
    before = {name: frozenset(_sources(graph, name)) for name, _ in named}
    depths = _depths(before, {name: data.get("depth") for name, data in named})
    sites = [
        Site(
            name=name,
            kind=str(data.get("kind") or data["type"]),
            queries=str(data["queries"]),
            keys=str(data["keys"]),
            depth=depths[name],
            order=order,
            facts=data,
            before=before[name],
        )
        for order, (name, data) in enumerate(named)
    ]
    return sorted(sites, key=lambda site: (site.depth, site.order))


def _sources(graph: Graph, name: str) -> Iterable[str]:
    return (source for source, _, data in graph.in_edges(name, data=True) if data.get("role") == "flow")


def _depths(before: Mapping[str, frozenset[str]], known: Mapping[str, Any]) -> dict[str, int]:
    """Depth of each site: the tracer's own if every site has one, else the longest path to it."""
    if all(isinstance(depth, int) for depth in known.values()):
        return {name: int(depth) for name, depth in known.items()}
    depths: dict[str, int] = {}
    flow = nx.DiGraph((source, name) for name, sources in before.items() for source in sources)
    flow.add_nodes_from(before)
    for name in nx.lexicographical_topological_sort(flow):
        depths[name] = 1 + max((depths[source] for source in before.get(name, ())), default=-1)
    return depths


def _join_chains(sites: list[Site]) -> list[Site]:
    """Draw a run of mixing steps (a stack of convolutions) as one box: nobody reads them one by one."""
    makers: dict[str, list[Site]] = {}
    readers: dict[str, list[Site]] = {}
    for site in sites:
        makers.setdefault(site.queries, []).append(site)
        if site.keys != site.queries:
            readers.setdefault(site.keys, []).append(site)

    def next_of(site: Site) -> Site | None:
        """The mixing step that alone reads what this one alone makes."""
        after = readers.get(site.queries, [])
        single = len(after) == 1 and len(makers[site.queries]) == 1
        return after[0] if single and after[0].kind == "mixing" and site.kind == "mixing" else None

    following = {site.name: after for site in sites if (after := next_of(site))}
    inner = {after.name for after in following.values()}
    joined, renamed = [], {}
    for site in sites:
        if site.name in inner:
            continue
        chain = [site]
        while (after := following.get(chain[-1].name)) is not None:
            chain.append(after)
        renamed.update({member.name: site.name for member in chain})
        joined.append(_chain(chain))
    return [replace(site, before=_renamed(site, renamed)) for site in joined]


def _renamed(site: Site, names: Mapping[str, str]) -> frozenset[str]:
    return frozenset(names.get(name, name) for name in site.before) - {site.name}


def _chain(chain: list[Site]) -> Site:
    if len(chain) == 1:
        return chain[0]
    # drawn where the chain begins: whatever reads its end is deeper anyhow
    return replace(chain[0], queries=chain[-1].queries, members=tuple(site.facts for site in chain))


def _lanes(rows: tuple[tuple[Site, ...], ...]) -> dict[str, int]:
    """Lanes in order of first use; a stream mixed from one that ends there takes over its lane."""
    last = {name: r for r, row in enumerate(rows) for site in row for name in (site.queries, site.keys)}
    lanes: dict[str, int] = {}
    count = 0
    for r, row in enumerate(rows):
        for site in row:
            for name in (site.keys, site.queries) if site.kind == "mixing" else (site.queries, site.keys):
                if name in lanes:
                    continue
                heir = site.kind == "mixing" and name == site.queries and last[site.keys] <= r
                taken = {lane for other, lane in lanes.items() if last[other] > r}
                if heir and lanes[site.keys] not in taken | {lanes.get(s.queries) for s in row if s != site}:
                    lanes[name] = lanes[site.keys]
                else:
                    lanes[name], count = count, count + 1
    return lanes


def _feeds(rows: tuple[tuple[Site, ...], ...], lanes: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Flow between lanes that no key shows, such as an image tower's tokens that become part of a text."""
    bits: dict[str, int] = {}
    sites = {site.name: site for row in rows for site in row}
    numbers = {name: 1 << i for i, name in enumerate(sites)}
    feeds = {}
    for name, site in sites.items():
        before = [sites[other] for other in site.before if other in bits]
        # only what reaches the site directly: not through another one that does
        direct = [s for s in before if not any(bits[o.name] & numbers[s.name] for o in before if o is not s)]
        own = {lanes[site.queries], lanes[site.keys]}
        feeds[name] = tuple(sorted({s.queries for s in direct if lanes[s.queries] not in own}))
        bits[name] = 0
        for other in before:
            bits[name] |= bits[other.name] | numbers[other.name]
    return feeds
