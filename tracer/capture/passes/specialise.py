"""Replace what a recording computes with shapes that depend on data by the values it had in this run.

Indices found by ``nonzero`` or by a boolean mask become constants, and so do random draws; what is gathered
through them stays computed, so gradients and token labels pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

_aten = torch.ops.aten
_MASKED = (
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
)


_DRAWS = (
    _aten.multinomial.default,
    _aten.bernoulli.default,
    _aten.rand.default,
    _aten.randn.default,
    _aten.rand_like.default,
    _aten.randn_like.default,
    _aten.randint.default,
    _aten.randint.low,
    _aten.randperm.default,
    _aten.normal.float_float,
)


class _Values(Interpreter):
    """Runs a graph and keeps the values of the nodes asked for."""

    def __init__(self, module: GraphModule, wanted: set[Node]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.kept: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            # a copy, for a later in-place operation may change it
            self.kept[n] = torch.utils._pytree.tree_map_only(Tensor, torch.clone, value)
        return value


def values_of(recorded: GraphModule, values: Sequence[Tensor], wanted: set[Node]) -> dict[Node, Any]:
    """The values that these nodes have in a run."""
    runner = _Values(recorded, wanted)
    runner.run(*values)
    return runner.kept


def specialise(recorded: GraphModule, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Rewrite ``recorded`` in place; the tensors for the placeholders that were added, by name, in order."""
    graph = recorded.graph
    found = [node for node in graph.nodes if depends_on_data(node)]
    masks = {node for node in graph.nodes if node.op == "call_function" and node.target in _MASKED}
    wanted = set(found) | {source for node in (*masks, *found) for source in node.all_input_nodes}
    if not found and not masks:
        return {}
    kept = values_of(recorded, values, wanted)
    lifted = Lifted(recorded)
    for node in masks:
        indices = [_unmasked(index, kept, lifted) for index in node.args[1]]
        node.args = (node.args[0], [i for group in indices for i in group], *node.args[2:])
    for node in found:
        _replace(node, kept, lifted)
    graph.lint()
    recorded.recompile()
    return lifted.tensors


def deciding(node: Node) -> list[Node]:
    """The nodes whose values a recording holds as constants where this operation stands; of indices only
    those that turn out to be masks."""
    if node.op != "call_function":
        return []
    if node.target in _MASKED:
        return [index for index in node.args[1] if isinstance(index, Node)]  # type: ignore[union-attr]
    if node.target in (_aten.masked_select.default, _aten.repeat_interleave.self_Tensor):
        return [node.args[1]]  # type: ignore[list-item]
    return [node] if depends_on_data(node) else []


def is_mask(value: Any) -> bool:
    """Whether an index is one of flags, which stand for as many places as are true."""
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)


class Lifted:
    """Adds placeholders for constants after the last placeholder of the graph."""

    def __init__(self, module: GraphModule) -> None:
        self._graph = module.graph
        self._last = [node for node in self._graph.nodes if node.op == "placeholder"][-1]
        """There is one, for a call without any tensor has nothing to explain."""
        self.tensors: dict[str, Tensor] = {}

    def __call__(self, tensor: Tensor, origin: Node) -> Node:
        return self.add(f"{origin.name}_value", tensor, own=True)

    def add(self, name: str, tensor: Tensor, own: bool = False) -> Node:
        with self._graph.inserting_after(self._last):
            node = self._graph.placeholder(name)
        node.target = node.name  # the graph made it unique
        self._last = node
        self.tensors[node.name] = tensor.clone() if own else tensor
        return node


def depends_on_data(node: Node) -> bool:
    """Whether the shape of what an operation gives hangs on values, or it draws them at random."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target is _aten.index.Tensor:
        return False
    composite = (_aten.where.default, _aten.argwhere.default, _aten.nonzero_numpy.default)
    repeats = _aten.repeat_interleave.self_Tensor
    shaped = torch.Tag.dynamic_output_shape in node.target.tags
    return shaped or node.target in (*composite, repeats, *_DRAWS)


def _unmasked(index: Any, kept: dict[Node, Any], lifted: Lifted) -> list[Any]:
    """The integer indices, one per axis, that a boolean index stands for; any other index as it is."""
    value = kept.get(index) if isinstance(index, Node) else None
    if value is None or not is_mask(value):
        return [index]
    return [lifted(axis, index) for axis in value.nonzero(as_tuple=True)]


def _replace(node: Node, kept: dict[Node, Any], lifted: Lifted) -> None:
    """Put constants, or a gather through constants, in the place of an operation of data-dependent shape."""
    result, graph = kept[node], node.graph
    tensors = result if isinstance(result, (list, tuple)) else [result]
    with graph.inserting_before(node):
        if node.target is _aten.masked_select.default:
            shape = (kept[node.args[0]] + kept[node.args[1]]).shape  # type: ignore[index]
            wide = graph.call_function(_aten.expand.default, (node.args[0], list(shape)))
            axes = kept[node.args[1]].expand(shape).nonzero(as_tuple=True)  # type: ignore[index]
            new = graph.call_function(_aten.index.Tensor, (wide, [lifted(axis, node) for axis in axes]))
        elif node.target is _aten.repeat_interleave.self_Tensor:
            new = _repeated(node, kept, lifted)
        elif node.target not in _DRAWS and any(t.is_floating_point() for t in tensors):
            return  # left as it is; the graph still holds for this input
        elif isinstance(result, Tensor):
            node.replace_all_uses_with(lifted(result, node))
            graph.erase_node(node)
            return
        else:
            for user in list(node.users):
                user.replace_all_uses_with(lifted(result[user.args[1]], node))
                graph.erase_node(user)
            graph.erase_node(node)
            return
    for added in (new, *new.all_input_nodes):
        added.meta = {**node.meta, **added.meta}
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _repeated(node: Node, kept: dict[Node, Any], lifted: Lifted) -> Node:
    source, repeats, *rest = node.args
    dim = rest[0] if rest else node.kwargs.get("dim")
    count = kept[repeats]  # type: ignore[index]
    if dim is None:
        source, dim = node.graph.call_function(_aten.reshape.default, (source, [-1])), 0
        size = kept[node.args[0]].numel()  # type: ignore[index]
    else:
        size = kept[node.args[0]].shape[dim]  # type: ignore[index]
    picks = torch.arange(size, device=count.device).repeat_interleave(count.expand(size))
    return node.graph.call_function(_aten.index_select.default, (source, dim, lifted(picks, node)))
