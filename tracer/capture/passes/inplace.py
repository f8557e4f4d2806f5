"""In-place operations whose operand nobody reads afterwards: the out-of-place operation is the same.

Networks of convolutions write most activations in place.  Making a whole program functional costs a second
trace, as long as the first; these cases are told from the memory that the traced values lie in.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg


def make_out_of_place(program: ExportedProgram) -> None:
    """Change every in-place operation after which only its own result is read; leave all others."""
    graph = program.graph
    try:
        memory = {node: _memory(node) for node in graph.nodes}
    except (NotImplementedError, RuntimeError):  # values inside of a transform lie nowhere
        return
    constants = {
        s.arg.name for s in program.graph_signature.input_specs if s.kind is InputKind.CONSTANT_TENSOR
    }
    order = {node: place for place, node in enumerate(graph.nodes)}
    owned: set[int] = set()  # memory of inputs and parameters, which outlives the graph
    readers: dict[int, list[Node]] = defaultdict(list)  # memory -> the values in it that may still be read
    for node in graph.nodes:
        places = memory[node]
        # a constant is read under another address than it has as an input
        if node.op != "call_function" or any(n.name in constants for n in node.all_input_nodes):
            owned |= places
        elif len(places) == 1 and not places & owned and (target := _out_of_place(node)) is not None:
            seen = readers[next(iter(places))]
            if seen and all(order[user] <= order[node] for value in seen for user in value.users):
                node.target = target
                seen.clear()
        for place in places:
            readers[place].append(node)


def _memory(node: Node) -> set[int]:
    """Where the values of a node lie; views lie where their base does."""
    value = node.meta.get("val")
    parts = value if isinstance(value, tuple | list) else (value,)
    return {part.untyped_storage()._cdata for part in parts if isinstance(part, Tensor)}


def _out_of_place(node: Node) -> OpOverload[Any, Any] | None:
    """The operation that returns what this one writes into its first argument, if it gives the same."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.name.endswith("_") or not schema.name.startswith("aten::"):
        return None
    packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::").removesuffix("_"), None)
    found = getattr(packet, schema.overload_name or "default", None)
    if found is None or found._schema.is_mutable or not _same_kind(node, found):
        return None
    return found  # type: ignore[no-any-return]


def _same_kind(node: Node, target: OpOverload[Any, Any]) -> bool:
    """Whether the result has the same type and shape: in place, an operand's own type is kept."""
    value = node.meta["val"]
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    if not isinstance(value, Tensor) or not hasattr(value, "fake_mode"):
        return False
    try:
        with value.fake_mode, torch.no_grad():
            result = target(*args, **kwargs)
    except (RuntimeError, TypeError):
        return False
    return isinstance(result, Tensor) and (result.dtype, result.shape) == (value.dtype, value.shape)
