"""In-place operations whose operand nobody reads afterwards: the out-of-place operation is the same.

Networks of convolutions write most activations in place.  Making a whole program functional costs a second
trace, as long as the first; these cases are told from the memory that the values lie in: those of the trace,
or of a run where a graph was recorded (not every operation that runs can be traced).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.node import map_arg


def make_out_of_place(program: ExportedProgram) -> None:
    """Change every in-place operation after which only its own result is read; leave all others."""
    try:
        memory = {node: _memory(node.meta.get("val")) for node in program.graph.nodes}
    except (NotImplementedError, RuntimeError):  # values inside of a transform lie nowhere
        return
    constants = {
        s.arg.name for s in program.graph_signature.input_specs if s.kind is InputKind.CONSTANT_TENSOR
    }
    _rewrite(program.graph, memory, constants, _traced_alike)


def make_recording_out_of_place(module: GraphModule, values: Sequence[Tensor]) -> None:
    """:func:`make_out_of_place` for a recording, told from a run of it on the values of its placeholders."""
    run = _Run(module, garbage_collect_values=False)
    with torch.no_grad():
        run.run(*values)
    memory = {node: _memory(value) for node, value in run.env.items()}
    _rewrite(module.graph, memory, (), lambda node, _: node in run.alike)
    module.recompile()


class _Run(Interpreter):
    """Runs a graph and notes the in-place operations that give what their out-of-place twins give."""

    def __init__(self, module: GraphModule, **options: Any) -> None:
        super().__init__(module, **options)
        self.alike: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        target = _out_of_place(n)
        if target is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        with suppress(RuntimeError, TypeError):
            if _alike(target(*args, **kwargs), args[0]):
                self.alike.add(n)
        return super().run_node(n)


def _rewrite(
    graph: Graph,
    memory: Mapping[Node, set[int]],
    constants: Collection[str],
    alike: Callable[[Node, OpOverload[Any, Any]], bool],
) -> None:
    order = {node: place for place, node in enumerate(graph.nodes)}
    owned: set[int] = set()  # memory of inputs and parameters, which outlives the graph
    readers: dict[int, list[Node]] = defaultdict(list)  # memory -> the values in it that may still be read
    for node in graph.nodes:
        places = memory.get(node, set())
        target = _out_of_place(node)
        # a constant is read under another address than it has as an input
        if node.op != "call_function" or any(n.name in constants for n in node.all_input_nodes):
            owned |= places
        elif len(places) == 1 and not places & owned and target is not None and alike(node, target):
            seen = readers[next(iter(places))]
            if seen and all(order[user] <= order[node] for value in seen for user in value.users):
                node.target = target
                seen.clear()
        for place in places:
            readers[place].append(node)


def _memory(value: Any) -> set[int]:
    """Where the values of a node lie; views lie where their base does."""
    parts = value if isinstance(value, tuple | list) else (value,)
    return {part.untyped_storage()._cdata for part in parts if isinstance(part, Tensor)}


def _out_of_place(node: Node) -> OpOverload[Any, Any] | None:
    """The operation that returns what this one writes into its first argument."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.name.endswith("_") or not schema.name.startswith("aten::"):
        return None
    packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::").removesuffix("_"), None)
    found = getattr(packet, schema.overload_name or "default", None)
    return None if found is None or found._schema.is_mutable else found


def _traced_alike(node: Node, target: OpOverload[Any, Any]) -> bool:
    """Whether the traced result has the same type and shape: in place, an operand's own type is kept."""
    value = node.meta["val"]
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    if not isinstance(value, Tensor) or not hasattr(value, "fake_mode"):
        return False
    try:
        with value.fake_mode, torch.no_grad():
            return _alike(target(*args, **kwargs), value)
    except (RuntimeError, TypeError):
        return False


def _alike(result: Any, value: Any) -> bool:
    tensors = isinstance(result, Tensor) and isinstance(value, Tensor)
    return tensors and (result.dtype, result.shape) == (value.dtype, value.shape)
