"""The attention graph as the page draws it: what each step reads, and where from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fxplain.render.graph.repeats import Graph, sites_of

Edge = tuple[str, str, str]
"""(from, to, role): ``query`` and ``key`` for the streams of a step, ``feed`` for what else it stands on."""


def edges_of(graph: Graph) -> list[Edge]:
    """What is drawn between boxes: each step hangs on the steps that wrote its queries and its keys last, or
    on the stream itself where none has.

    Example:
        >>> import networkx as nx
        >>> graph = nx.MultiDiGraph()
        >>> graph.add_node("attention:0", type="attention", queries="x", keys="x")
        >>> graph.add_node("attention:1", type="attention", queries="x", keys="y")
        >>> _ = graph.add_edge("attention:0", "attention:1", role="flow")
        >>> edges_of(graph)[1:]
        [('attention:0', 'attention:1', 'query'), ('stream:y', 'attention:1', 'key')]
    """
    sites = sites_of(graph)
    behind: dict[str, set[str]] = {}
    drawn: list[Edge] = []
    made = {data["queries"] for data in sites.values() if _makes(data)}
    for name, data in sites.items():
        direct = [s for s, _, edge in graph.in_edges(name, data=True) if edge.get("role") == "flow"]
        behind[name] = set(direct).union(*(behind.get(source, ()) for source in direct))
        own: list[Edge] = []
        for role, stream in _reads(data):
            last = _last(sites, behind[name], stream)
            if last is None and stream in made and direct:
                continue  # its makers are drawn as what feeds this step
            own.append((last or f"stream:{stream}", name, role))
        known = {source for source, _, _ in own}
        covered = known.union(*(behind.get(source, ()) for source in known))
        drawn += [*own, *((source, name, "feed") for source in direct if source not in covered)]
    return drawn


def _reads(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The streams that a step reads, each with what for; new tokens carry on what they are made of."""
    queries, keys = str(data["queries"]), str(data["keys"])
    if _makes(data):
        return [("query", keys)]
    return [("query", queries)] if keys == queries else [("query", queries), ("key", keys)]


def _makes(data: Mapping[str, Any]) -> bool:
    """Whether a step makes new tokens, so that it has no queries that were there before."""
    return data.get("type") == "mixing" and not data.get("kind")


def _last(sites: Mapping[str, Mapping[str, Any]], behind: set[str], stream: str) -> str | None:
    """The last of some steps that wrote a stream."""
    writers = [name for name in sites if name in behind and sites[name]["queries"] == stream]
    return writers[-1] if writers else None


def short_names(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The module of each step without what all paths begin with.

    Example:
        >>> short_names({"a": {"module": "bert.layer.0.attn"}, "b": {"module": "bert.layer.1.attn"}})
        {'a': 'layer.0.attn', 'b': 'layer.1.attn'}
    """
    modules = {name: str(data.get("module") or "") for name, data in sites.items()}
    start = _common_start(modules.values())
    return {
        name: module.removeprefix(start) or module or str(sites[name].get("name", name))
        for name, module in modules.items()
    }


def _common_start(paths: Iterable[str]) -> str:
    """The parts of dotted paths that all have in common, where none is empty, and each has more."""
    split = [path.split(".")[:-1] for path in paths]
    shared: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1 or parts[0].isdigit():
            break
        shared.append(parts[0])
    # a number stays with the name before it: layer.0, not 0
    if shared and any(
        parts[len(shared) : len(shared) + 1] and parts[len(shared)].isdigit() for parts in split
    ):
        shared.pop()
    return ".".join(shared) + "." if shared else ""
