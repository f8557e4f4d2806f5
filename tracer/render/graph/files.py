"""The attention graph as a file: JSON (node-link), DOT, GraphML or the page; one table of forms."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import networkx as nx

from fxplain.errors import OutputError
from fxplain.render.colours import kind_name
from fxplain.render.graph.page import graph_html
from fxplain.render.graph.repeats import Graph
from fxplain.render.save import plain

_COLOURS = {"self": "#2f6fde", "co": "#b43c9a", "encoder_decoder": "#d1600a"}
_GREY = "#6d7783"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def graph_text(graph: Graph, form: str, title: str = "attention graph") -> str:
    """The graph in one of the forms of :data:`FORMS`.

    Args:
        graph: what ``traced.graph`` gives.
        form: ``json``, ``dot``, ``graphml`` or ``html``.
        title: heads the page; the other forms have no title.

    Raises:
        OutputError: no such form.

    Example:
        >>> graph = nx.MultiDiGraph()
        >>> graph.add_node("stream:x", type="stream", name="x", size=4, spaces="x")
        >>> print(graph_text(graph, "dot"))
        digraph attention {
          rankdir=TB;
          node [fontname="sans-serif", fontsize=10];
          edge [fontname="sans-serif", fontsize=9, color="#6d7783"];
          "stream:x" [label="x\\n4 tokens", shape=box, style="rounded,filled", fillcolor="#eceef1"];
        }
        <BLANKLINE>
    """
    if form not in FORMS:
        raise OutputError(
            f"the graph cannot be written as {form!r}",
            expected=f"one of {', '.join(FORMS)}",
            found=repr(form),
        )
    return graph_html(graph, title) if form == "html" else FORMS[form](graph)


def graph_json(graph: Graph) -> str:
    """Node-link JSON; ``networkx.node_link_graph(data, edges="edges")`` reads it back."""
    data = {
        "directed": True,
        "multigraph": True,
        "graph": plain(graph.graph),
        "nodes": [{**plain(data), "id": name} for name, data in graph.nodes(data=True)],
        "edges": [
            {**plain(data), "source": source, "target": target, "key": key}
            for source, target, key, data in graph.edges(keys=True, data=True)
        ],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def graph_graphml(graph: Graph) -> str:
    """GraphML; what it has no type for (lists, None) is written as JSON text."""
    clean: nx.MultiDiGraph[str] = nx.MultiDiGraph(**_scalars(graph.graph))
    clean.add_nodes_from((_xml(name), _scalars(data)) for name, data in graph.nodes(data=True))
    for source, target, data in graph.edges(data=True):
        clean.add_edge(_xml(source), _xml(target), **_scalars(data))
    buffer = io.BytesIO()
    nx.write_graphml(clean, buffer, encoding="utf-8")
    return buffer.getvalue().decode("utf-8") + "\n"


def _scalars(data: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): _scalar(plain(value)) for name, value in data.items()}


def _scalar(value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    return _xml(value if isinstance(value, str) else json.dumps(value))


def _xml(text: str) -> str:
    """Control characters and half surrogates have no place in XML, not even escaped."""
    return _NOT_XML.sub("\ufffd", text)


def graph_dot(graph: Graph) -> str:
    """DOT, for Graphviz: streams as rounded boxes, attentions by the colour of their kind."""
    lines = [
        "digraph attention {",
        "  rankdir=TB;",
        '  node [fontname="sans-serif", fontsize=10];',
        f'  edge [fontname="sans-serif", fontsize=9, color="{_GREY}"];',
    ]
    lines += [f"  {_quote(name)} [{_node(data)}];" for name, data in graph.nodes(data=True)]
    for source, target, data in graph.edges(data=True):
        lines.append(f"  {_quote(source)} -> {_quote(target)} [{_edge(str(data.get('role', '')))}];")
    return "\n".join([*lines, "}"]) + "\n"


def _node(data: Mapping[str, Any]) -> str:
    if data.get("type") == "stream":
        label = _quote(f"{data['name']}\n{data.get('size', '?')} tokens")
        return f'label={label}, shape=box, style="rounded,filled", fillcolor="#eceef1"'
    kind = str(data.get("kind") or data["type"])
    lines = [f"{data.get('index', '')} {kind_name(kind)}", str(data.get("module", ""))]
    lines.append(
        f"{data['heads']} heads, {data.get('size', '')}" if "heads" in data else str(data.get("op", ""))
    )
    tip = f"{data.get('queries', '')} from {data.get('keys', '')}, {data.get('source', '')}"
    colour = _COLOURS.get(kind, _GREY)
    label, tip = _quote("\n".join(filter(None, lines))), _quote(tip)
    return f'label={label}, tooltip={tip}, shape=box, color="{colour}", penwidth=2'


def _edge(role: str) -> str:
    # only the dataflow orders the drawing; a stream is updated many times and would pull it into a knot
    styles = {"flow": "penwidth=2", "update": "style=dotted, constraint=false", "query": "arrowhead=none"}
    return ", ".join(filter(None, (f"label={_quote(role)}", styles.get(role, "style=solid"))))


def _quote(text: str) -> str:
    """A DOT string: quotes, backslashes and line breaks escaped, other control characters dropped."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + "".join(letter for letter in text if letter.isprintable()) + '"'


FORMS: Mapping[str, Callable[[Graph], str]] = {
    "json": graph_json,
    "dot": graph_dot,
    "graphml": graph_graphml,
    "html": graph_html,
}
"""Form -> writer; a form that is not here is an error."""
