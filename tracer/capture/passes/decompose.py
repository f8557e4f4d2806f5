"""Operations that nothing is known of, written out as those that PyTorch itself makes them of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch._prims
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx

from fxplain.capture.passes.clean import draws, tidy_graph

ROUNDS = 3
"""How often what an operation is made of is written out in its turn."""


def written_out(module: fx.GraphModule, known: Callable[[fx.Node], bool]) -> None:
    """Put what an operation is made of in its place, if it is not known; the graph is changed in place.

    The numbers are those of the operation: PyTorch's own rewriting is traced on tensors without data. What it
    has no rewriting of stays.
    """
    for _ in range(ROUNDS):
        unknown = [node for node in module.graph.nodes if _may_be(node) and not known(node)]
        if not [node for node in unknown if _write_out(module.graph, node)]:
            return
        module.recompile()


def _may_be(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return node.target.namespace == "aten" and not node.target._schema.is_mutable and not draws(node)


def _write_out(graph: fx.Graph, node: fx.Node) -> bool:
    """Whether the node was replaced."""
    used = node.all_input_nodes
    values = [each.meta.get("val") for each in used]
    if not all(isinstance(value, Tensor) for value in values):
        return False

    def call(*tensors: Tensor) -> Any:
        real = dict(zip(used, tensors, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), real.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    try:
        body = make_fx(call, decomposition_table=_table(node.target))(*values)
    except Exception:  # a rewriting may need what tensors without data have not
        return False
    if any(inner.op == "get_attr" or inner.target is node.target for inner in body.graph.nodes):
        return False
    body = tidy_graph(body)
    given = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), used, strict=True))
    with graph.inserting_before(node):
        results = graph.graph_copy(body.graph, given)
    origin = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    for made in set(given.values()) - set(used):
        made.meta = {**made.meta, **origin}
    _replace(graph, node, results)
    return True


def _table(target: Any) -> dict[Any, Callable[..., Any]]:
    """How PyTorch rewrites an operation, and the primitives that such a rewriting may end in."""
    own = decomposition_table.get(target)
    return {**_primitives(), **({} if own is None else {target: own})}


@cache
def _primitives() -> dict[Any, Callable[..., Any]]:
    """Each primitive of ``torch._prims`` as ATen spells it."""
    found: dict[Any, Callable[..., Any]] = {}
    for name in torch._prims.__all__:
        aten = getattr(getattr(torch._prims, name, None), "impl_aten", None)
        primitive = getattr(torch.ops.prims, name, None)
        if aten is not None and primitive is not None:
            found[primitive.default] = aten
    return found


def _replace(graph: fx.Graph, node: fx.Node, results: Any) -> None:
    if isinstance(results, fx.Node):
        results.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(results)
    else:
        for user in list(node.users):  # the takings of one of several results
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)
