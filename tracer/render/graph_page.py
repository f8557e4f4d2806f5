"""The attention graph as a page: streams as lanes, attentions in dataflow order, details on hover."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fxplain.render.colours import kind_name
from fxplain.render.graph_layout import BOX, HEIGHT, lay_out
from fxplain.render.graph_rows import Graph, plan
from fxplain.render.pages import page

_ORDER = ("self", "co", "encoder_decoder", "mixing")


def graph_html(graph: Graph, title: str = "attention graph") -> str:
    """The graph that ``traced.graph`` gives, as one HTML page that loads nothing and runs nothing.

    Example:
        >>> import networkx as nx
        >>> graph = nx.MultiDiGraph()
        >>> graph.add_node("stream:x", type="stream", name="x", size=4, spaces="x")
        >>> graph.add_node("attention:0", type="attention", kind="self", queries="x", keys="x", depth=1,
        ...                index=0, heads=2, size="4 x 4", module="attn", source="m.py:1")
        >>> "<svg" in graph_html(graph)
        True
    """
    rows = plan(graph)
    layout = lay_out(rows)
    sites = [data for _, data in graph.nodes(data=True) if data.get("type") != "stream"]
    counts = Counter(str(data.get("kind") or data["type"]) for data in sites)
    kinds = sorted(counts, key=lambda kind: (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), kind))
    return page(
        "graph.html.j2",
        title=title,
        layout=layout,
        wires={wire.style for box in layout.boxes for wire in box.wires},
        box={"width": BOX, "height": HEIGHT},
        legend=[(kind, kind_name(kind), counts[kind]) for kind in kinds],
        streams=list(rows.streams.values()),
        sites=sorted(sites, key=lambda data: (data.get("depth", 0), data.get("index", 0))),
        kind_name=kind_name,
        facts=_facts(graph),
    )


def _facts(graph: Graph) -> dict[str, str]:
    """The graph's own attributes, in words."""
    return {str(name).replace("_", " "): _words(value) for name, value in graph.graph.items()}


def _words(value: Any) -> str:
    return ", ".join(str(entry) for entry in value) if isinstance(value, (list, tuple)) else str(value)
