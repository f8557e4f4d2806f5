"""Bodies of regions and loops of an exported graph, put in their place: as often as a loop runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

LOOPS = ("scan", "map_impl")
MOST_NODES = 20_000
"""A loop whose turns have more operations than these in all stays as it is, and is refused by its name."""


def unroll_loops(root: GraphModule) -> None:
    """Put the bodies of ``scan`` and ``map`` in their place, once for each turn.

    So what a loop does is seen as if Python had run it. How often ``while_loop`` runs depends on data.

    Raises:
        RuntimeError: how often a loop runs is left open, as in an export for many sizes.
    """
    for module in list(root.modules()):
        if isinstance(module, GraphModule) and any(_is_loop(node) for node in module.graph.nodes):
            for node in [node for node in module.graph.nodes if _is_loop(node)]:
                _unroll(module, node)
            module.recompile()


def _is_loop(node: Node) -> bool:
    higher = isinstance(node.target, torch._ops.HigherOrderOperator)
    return higher and getattr(node.target, "__name__", "") in LOOPS


def _unroll(module: GraphModule, loop: Node) -> None:
    arguments: Any = loop.args
    body, (over, beside) = arguments[0], arguments[-2:]
    carried: list[Any] = list(arguments[1]) if len(arguments) == 4 else []  # a map carries nothing on
    turns = over[0].meta["val"].shape[0]
    if not isinstance(turns, int):
        raise RuntimeError("how often a loop runs is not known from the sizes")
    inside: Any = module.get_submodule(str(body.target))
    if not 0 < turns * len(inside.graph.nodes) <= MOST_NODES:
        return
    count, made = len(carried), []
    for turn in range(turns):
        taken = [_made(module, loop, torch.ops.aten.select.int, each, 0, turn) for each in over]
        results = body_in_place(module, loop, body, [*carried, *taken, *beside])
        carried = list(results[:count])
        made.append(results[count:])
    stacked = [
        _made(module, loop, torch.ops.aten.stack.default, list(each)) for each in zip(*made, strict=True)
    ]
    replace_region(module, loop, body, [*carried, *stacked])


def _made(module: GraphModule, before: Node, operation: Any, *args: Any) -> Node:
    """A new operation before a node, which it stands in for: of its module and line."""
    with module.graph.inserting_before(before):
        node = module.graph.call_function(operation, args)
    node.meta.update({key: value for key, value in before.meta.items() if key != "val"})
    node.meta["val"] = operation(*map_arg(args, lambda used: used.meta["val"]))
    return node


def body_in_place(module: GraphModule, before: Node, body_node: Node, given: Sequence[Any]) -> Any:
    """Copy a body's operations before a node; returns what it gives back."""
    body = module.get_submodule(str(body_node.target))
    assert isinstance(body, GraphModule)
    inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
    values: dict[Node, Any] = dict(zip(inputs, given, strict=True))
    results: Any = ()
    with module.graph.inserting_before(before):
        for node in body.graph.nodes:
            if node.op == "output":
                results = map_arg(node.args[0], lambda n: values[n])
            elif node.op == "get_attr":
                setattr(module, f"{body_node.target}_{node.target}", getattr(body, str(node.target)))
                values[node] = module.graph.get_attr(f"{body_node.target}_{node.target}")
            elif node.op != "placeholder":
                values[node] = module.graph.node_copy(node, lambda n: values[n])
    return results


def replace_region(module: GraphModule, region: Node, body_node: Node, results: Any) -> None:
    """Hand what a body gives back to those that read it from its region, which goes."""
    for user in list(region.users):
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(region)
    if not body_node.users:
        module.graph.erase_node(body_node)
