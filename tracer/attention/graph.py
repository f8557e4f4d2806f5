"""The attention graph: streams and attentions as nodes of a ``networkx.MultiDiGraph``, in dataflow order."""

from __future__ import annotations

from typing import Any

import networkx as nx

from fxplain.attention.classify import Classified
from fxplain.attention.records import Attention, Mixing
from fxplain.labels.flows import Site


def attention_graph(classified: Classified, outputs: tuple[str, ...]) -> nx.MultiDiGraph[str]:
    """Build the graph. Every attribute is a plain string, number or boolean, so any writer of networkx works.

    Nodes are ``stream:NAME``, ``attention:INDEX`` and ``mixing:INDEX``; edges carry a ``role``: ``query`` and
    ``key`` from streams to attentions, ``update`` back to the stream that is written, ``flow`` from one
    attention to the next that reads what it wrote.
    """
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph(outputs=", ".join(outputs))
    for stream in classified.streams:
        name = f"stream:{stream.name}"
        graph.add_node(
            name, type="stream", name=stream.name, size=stream.size, spaces=", ".join(stream.spaces)
        )
    names: dict[int, str] = {}
    depths: dict[int, int] = {}
    for site, entry in zip(classified.sites, classified.steps, strict=True):
        name = f"{site.role}:{entry.index}"
        before = _direct(site, names, classified.sites)
        depths[site.index] = 1 + max((depths[index] for index in before), default=0)
        graph.add_node(name, type=site.role, depth=depths[site.index], **_facts(entry))
        graph.add_edge(f"stream:{entry.queries.name}", name, role="query")
        graph.add_edge(f"stream:{entry.keys.name}", name, role="key")
        graph.add_edge(name, f"stream:{entry.queries.name}", role="update")
        for index in before:
            graph.add_edge(names[index], name, role="flow")
        names[site.index] = name
    return graph


def _facts(entry: Attention | Mixing) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": entry.name,
        "index": entry.index,
        "queries": entry.queries.name,
        "keys": entry.keys.name,
        "size": f"{entry.queries.size} x {entry.keys.size}",
        "module": entry.module,
        "source": entry.source,
        "node": entry.node,
    }
    if isinstance(entry, Mixing):
        known = {"kind": entry.kind, "layer": entry.layer}
        return {**facts, "op": entry.op} | {name: fact for name, fact in known.items() if fact is not None}
    return {
        **facts,
        "kind": entry.kind,
        "layer": entry.layer,
        "heads": entry.heads,
        "fused": entry.fused,
        "normaliser": entry.normaliser,
        "windows": entry.windows,
        "window": f"{entry.window[0]} x {entry.window[1]}",
    }


def _direct(site: Site, names: dict[int, str], sites: tuple[Site, ...]) -> list[int]:
    """The sites read directly: those behind it that are not behind another of them."""
    behind = {index for index in site.rows.reads | site.cols.reads if index in names}
    reads = {s.index: s.rows.reads | s.cols.reads for s in sites}
    covered = {earlier for index in behind for earlier in reads[index]}
    return sorted(behind - covered)
