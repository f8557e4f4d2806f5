"""The path that a recorded run took: what the program read from its data, to tell whether others take it too.

A recording holds numbers in the place of what the program read (an ``.item()`` that chose a branch, the rows
that ``nonzero`` found for an expert). Another input takes the same path if all of them come out the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from fxplain.capture.guard import same_random_numbers, untouched, values_kept
from fxplain.capture.passes.specialise import deciding, depends_on_data, is_mask, values_of
from fxplain.capture.placeholder import Placeholder

_aten = torch.ops.aten
_READ = (
    _aten.item.default,
    _aten._local_scalar_dense.default,
    _aten.resolve_neg.default,  # the last that is seen of tolist() and numpy()
    _aten.resolve_conj.default,
)


@dataclass(frozen=True, eq=False)
class Path:
    """The part of a recording that leads to what the program read, and what it read."""

    graph: GraphModule = field(repr=False)
    placeholders: tuple[Placeholder, ...]
    """Those that this part needs, in the order of its graph."""
    constants: Mapping[str, Tensor] = field(repr=False)
    """By name of the placeholder node."""
    read: tuple[Any, ...] = field(repr=False)

    @property
    def live(self) -> tuple[Placeholder, ...]:
        """Those that stand for parameters and buffers of the model."""
        return tuple(p for p in self.placeholders if p.kind in ("parameter", "buffer"))

    def taken_by(self, inputs: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> bool:
        """Whether the program would read the same numbers.

        Args:
            inputs: by path.
            live: parameters and buffers as they are now, by name of the placeholder node.
        """
        values = [
            inputs[p.path]
            if p.kind == "input"
            else live[p.node]
            if p.node in live
            else self.constants[p.node]
            for p in self.placeholders
        ]
        try:
            outputs: Any = self.graph.graph.output_node().args[0]
            found = tree_leaves([*_seen(self.graph, values, outputs).values()])
        except Exception:  # shapes that only the recorded numbers fit
            return False
        return len(found) == len(self.read) and all(map(_same, found, self.read))


def path_of(recorded: GraphModule, placeholders: Sequence[Placeholder], values: Mapping[str, Tensor]) -> Path:
    """The path of a recording; it holds a copy of the graph, so the recording may change.

    Args:
        recorded: still with ``.item()`` and data-dependent shapes; all tensors are placeholders.
        values: a tensor for each placeholder, by name of its node.
    """
    decisive = _decisive(recorded, [values[p.node] for p in placeholders])
    graph, copies = Graph(), dict[Node, Node]()
    graph.graph_copy(recorded.graph, copies)
    graph.output(tuple(copies[node] for node in decisive))
    graph.eliminate_dead_code()
    inputs = [(copies[node], p) for node, p in zip(_inputs_of(recorded.graph), placeholders, strict=True)]
    kept = [p for node, p in inputs if node.users]
    for node, _ in inputs:
        if not node.users:
            graph.erase_node(node)
    constants = {p.node: values[p.node] for p in kept if p.kind == "constant"}
    return Path(
        GraphModule(nn.Module(), graph), tuple(kept), constants, tuple(tree_leaves([*decisive.values()]))
    )


def _decisive(recorded: GraphModule, values: Sequence[Tensor]) -> dict[Node, Any]:
    """What the program read, and what the recording holds as constants: the nodes, each with its value."""
    calls = [node for node in recorded.graph.nodes if node.op == "call_function"]
    read = [node for node in calls if node.target in _READ and not node.users]
    held = [source for node in calls for source in deciding(node)]
    # whether an index is a mask is told by its value alone
    indices = {source for node in calls if not depends_on_data(node) for source in deciding(node)}
    seen = _seen(recorded, values, [*read, *held])
    return {node: value for node, value in seen.items() if node not in indices or is_mask(value)}


def _seen(module: GraphModule, values: Sequence[Tensor], wanted: Sequence[Node]) -> dict[Node, Any]:
    """The values of some nodes as they were computed; what the graph writes into is as before afterwards."""
    with untouched(None), values_kept(module, values), same_random_numbers():
        found = values_of(module, values, set(wanted))
    return {node: found[node] for node in wanted}


def _inputs_of(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return bool(one == other)
