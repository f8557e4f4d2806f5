"""A product that is added to data in one call becomes a product and a sum: two steps for tokens.

In ``addmm(x, mixing, x)`` the product makes new tokens, and the sum brings them to those of ``x``. Where
what it is added to is a bias, the call is a linear map, or scores with a bias, and stays whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxplain.capture.captured import Draft

PRODUCTS = {"aten::addmm": "mm", "aten::baddbmm": "bmm", "aten::addmv": "mv"}
LOOKED_UP = ("aten::embedding", "aten::embedding_bag")


def apart(draft: Draft) -> Draft:
    """The draft with such calls taken apart; the graph is changed in place."""
    graph = draft.graph.graph
    data = _data(draft)
    for node in list(graph.nodes):
        product = PRODUCTS.get(_name(node))
        if product is None or node.args[0] not in data or node.kwargs.get("beta", 1) == 0:
            continue
        aten: Any = torch.ops.aten
        with graph.inserting_before(node):
            made = graph.call_function(getattr(aten, product).default, node.args[1:3])
            base = _times(graph, node.args[0], node.kwargs.get("beta", 1))
            new = graph.call_function(
                aten.add.Tensor, (base, _times(graph, made, node.kwargs.get("alpha", 1)))
            )
        made.meta = {key: value for key, value in node.meta.items() if key != "val"}
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    return draft


def _times(graph: fx.Graph, what: Any, factor: Any) -> Any:
    return what if factor == 1 else graph.call_function(torch.ops.aten.mul.Scalar, (what, factor))


def _data(draft: Draft) -> set[fx.Node]:
    """What depends on numbers of the inputs, or is looked up by their ids; what only masks tell is none."""
    inputs = {placeholder.node for placeholder in draft.placeholders if placeholder.kind == "input"}
    found: set[fx.Node] = set()
    for node in draft.graph.graph.nodes:
        value = node.meta.get("val")
        numbers = not isinstance(value, Tensor) or value.is_floating_point()
        given = node.name in inputs and numbers
        if given or _name(node) in LOOKED_UP or any(before in found for before in node.all_input_nodes):
            found.add(node)
    return found


def _name(node: fx.Node) -> str:
    return str(getattr(getattr(node.target, "_schema", None), "name", ""))
