"""Sparse matrices become dense ones, for which labels and gradients are known.

Elements that a sparse matrix stores and that are 0 are taken for such that it does not store. Where that
makes a difference, the graph is not the model, and verifying it says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxplain.capture.captured import Draft

SAME = (
    "to_sparse", "_to_sparse", "to_sparse_coo", "to_sparse_csr", "_to_sparse_csr", "to_sparse_csc",
    "_to_sparse_csc", "to_dense", "_to_dense", "coalesce", "_coalesce",
)  # fmt: skip
"""Operations between layouts, which a dense matrix needs not."""
PRODUCTS = {"_sparse_mm": "mm", "_sparse_addmm": "addmm"}


def without_sparse(draft: Draft) -> Draft:
    """The draft with dense matrices in the place of sparse ones; the graph is changed in place."""
    graph = draft.graph.graph
    for node in list(graph.nodes):
        name = getattr(getattr(node.target, "_schema", None), "name", "").removeprefix("aten::")
        with graph.inserting_before(node):
            new = _dense(graph, node, name)
        if new is None:
            continue
        if isinstance(new, fx.Node) and new.op == "call_function" and new is not node.args[0]:
            new.meta = {**node.meta, **new.meta}
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    return draft


def _dense(graph: fx.Graph, node: fx.Node, name: str) -> fx.Node | None:
    """What stands for a node where all matrices are dense; None where it may stay."""
    aten: Any = torch.ops.aten
    call: Callable[..., fx.Node] = graph.call_function
    if name in SAME:
        source = node.args[0]
        return source if isinstance(source, fx.Node) else None
    if name in PRODUCTS:
        return call(getattr(aten, PRODUCTS[name]).default, node.args, _numbers(node))
    if name == "sparse_coo_tensor" and len(node.args) > 2 and isinstance(node.args[1], fx.Node):
        index, values, shape = node.args[:3]
        count = len(shape)  # type: ignore[arg-type]
        empty = call(aten.new_zeros.default, (values, shape))
        places = [call(aten.select.int, (index, 0, axis)) for axis in range(count)]
        return call(aten.index_put.default, (empty, places, values, True))
    if name == "_sparse_softmax":
        matrix, axis = node.args[:2]
        absent = call(aten.eq.Scalar, (matrix, 0))
        scores = call(aten.masked_fill.Scalar, (matrix, absent, -torch.inf))
        soft = call(aten.softmax.int, (scores, axis))
        return call(aten.masked_fill.Scalar, (soft, absent, 0.0))  # rows without any element are NaN
    if name in ("indices", "_indices"):
        return call(aten.numpy_T.default, (call(aten.nonzero.default, node.args),))
    if name in ("values", "_values"):
        present = call(aten.ne.Scalar, (node.args[0], 0))
        return call(aten.index.Tensor, (node.args[0], [present]))
    return None


def _numbers(node: fx.Node) -> dict[str, Any]:
    return {name: value for name, value in node.kwargs.items() if name in ("alpha", "beta")}
