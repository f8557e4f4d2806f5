"""The attention graph to look at: folded, zoomed, searched, filtered; a click opens an attention."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from fxplain.attention.records import CensusEntry
from fxplain.render.colours import kind_name
from fxplain.render.graph.drawing import edges_of, short_names
from fxplain.render.graph.look import Look, as_data, words_of
from fxplain.render.graph.repeats import Chain, Graph, Item, Repeat, folded, sites_of
from fxplain.render.pages import page

_ORDER = ("self", "co", "encoder_decoder", "mixing")

LIBRARIES = (
    "d3-dispatch", "d3-selection", "d3-timer", "d3-color", "d3-interpolate", "d3-ease", "d3-transition",
    "d3-drag", "d3-zoom", "dagre",
)  # fmt: skip
"""Files in ``bundled/``, each after those that it needs."""

OWN = ("graph", "graph_tokens", "graph_panel")
"""The page's own script, part by part: the drawing, the tokens, what lies beside."""


def graph_html(
    graph: Graph,
    title: str = "attention graph",
    census: Sequence[CensusEntry] = (),
    look: Look | None = None,
) -> str:
    """The graph that ``traced.graph`` gives, as one HTML page that loads nothing.

    It runs two scripts, which its policy names by their hashes: :data:`LIBRARIES`, and its own.

    Args:
        census: what ``traced.census`` gives.
        look: what is known of one input.

    Example:
        >>> import networkx as nx
        >>> graph = nx.MultiDiGraph()
        >>> graph.add_node("stream:x", type="stream", name="x", size=4, spaces="x")
        >>> graph.add_node("attention:0", type="attention", kind="self", queries="x", keys="x", depth=1,
        ...                index=0, heads=2, size="4 x 4", module="attn", source="m.py:1")
        >>> "script-src 'sha256-" in graph_html(graph)
        True
    """
    sites = sites_of(graph)
    counts = Counter(_kind(data) for data in sites.values())
    kinds = sorted(counts, key=lambda kind: (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), kind))
    scripts = [_libraries(), "".join(_text(f"templates/{name}.js") for name in OWN)]
    return page(
        "graph.html.j2",
        title=title,
        sites=sites,
        kinds=[(kind, kind_name(kind), counts[kind]) for kind in kinds],
        streams=_streams(graph, sites),
        census=census,
        facts=_facts(graph),
        look=look,
        said=[] if look is None else words_of(look),
        kind_of=_kind,
        kind_name=kind_name,
        data=json.dumps(_data(graph, sites, look), allow_nan=False).replace("<", "\\u003c"),
        scripts=scripts,
        digests=[_digest(script) for script in scripts],
        licences=_text("bundled/LICENSES.txt"),
    )


def _kind(data: Mapping[str, Any]) -> str:
    return str(data.get("kind") or data["type"])


def _data(graph: Graph, sites: Mapping[str, Mapping[str, Any]], look: Look | None) -> dict[str, Any]:
    """What the script draws."""
    short = short_names(sites)
    known = {data["name"]: data for _, data in graph.nodes(data=True) if data.get("type") == "stream"}
    nodes = {
        name: {**data, "role": data["type"], "kind": _kind(data), "short": short[name]}
        for name, data in sites.items()
    }
    edges = edges_of(graph)
    streams = {}
    for name in dict.fromkeys(source for source, _, _ in edges if source not in sites):
        stream = name.removeprefix("stream:")
        streams[name] = {"name": stream, "size": known.get(stream, {}).get("size")}
    return {
        "nodes": nodes,
        "streams": streams,
        "edges": edges,
        "items": [_item(item) for item in folded(graph)],
        "kinds": {_kind(data): kind_name(_kind(data)) for data in sites.values()},
        "look": None if look is None else as_data(look),
    }


def _item(item: Item) -> Any:
    if isinstance(item, Chain):
        return {"chain": list(item.members)}
    if isinstance(item, Repeat):
        return {"copies": [[_item(step) for step in copy] for copy in item.copies]}
    return item


def _streams(graph: Graph, sites: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The streams that steps write, the busiest first, each with how many do."""
    writers = Counter(str(data["queries"]) for data in sites.values())
    known = {data["name"]: data for _, data in graph.nodes(data=True) if data.get("type") == "stream"}
    return [
        {"name": name, "steps": count, "size": known.get(name, {}).get("size", "?")}
        for name, count in sorted(writers.items(), key=lambda pair: -pair[1])
    ]


@cache
def _text(path: str) -> str:
    return (files("fxplain.render") / path).read_text(encoding="utf-8")


@cache
def _libraries() -> str:
    parts = [_text(f"bundled/{name}.min.js") for name in LIBRARIES]
    # a source map would be asked for, which is not there
    lines = [line for part in parts for line in part.splitlines() if "sourceMappingURL" not in line]
    return "\n".join(lines) + "\n"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _facts(graph: Graph) -> dict[str, str]:
    """The graph's own attributes, in words."""
    return {str(name).replace("_", " "): _words(value) for name, value in graph.graph.items()}


def _words(value: Any) -> str:
    return ", ".join(str(entry) for entry in value) if isinstance(value, (list, tuple)) else str(value)
