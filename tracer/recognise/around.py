"""What lies around a node of the graph: the ways to it and from it, and other calls like it.

Transfer functions know the operands of one call alone; whatever needs more than that is asked here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import getitem
from typing import Any

from torch import fx

from fxplain.labels.call import Call, aten, op_name
from fxplain.labels.value import Operand, Value
from fxplain.where import module_path

LAYING = aten(
    "view reshape _unsafe_view permute transpose t unsqueeze squeeze flatten unflatten expand clone "
    "contiguous detach dropout alias to _to_copy mT numpy_T movedim adjoint swapaxes swapdims moveaxis"
)
"""Operations after which all numbers of a map are still there, laid out otherwise."""

SPREADING = aten("expand expand_as repeat expand_copy clone contiguous")
"""Operations whose result holds copies of the same numbers along axes where the operand has one."""


SUMMING = aten("matmul bmm mm einsum baddbmm tensordot cdist")
"""Operations that sum products."""


def before(node: fx.Node, operations: Sequence[str]) -> list[fx.Node]:
    """A node and those whose numbers it holds, however laid out by these operations; the last comes first."""
    found = [node]
    while op_name(node) in operations and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        found.append(node)
    return found


def run_on(node: fx.Node, operand: Any) -> Any:
    """What an operation with one operand gives on another one."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: operand)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def made_by(call: Call, node: fx.Node) -> fx.Node:
    """The operation that made a tensor from nothing, which was only laid out otherwise since."""
    while len(node.all_input_nodes) == 1:
        before = call.values.get(node.all_input_nodes[0])
        if not isinstance(before, Value) or before.from_input or before.root is not None:
            break
        node = node.all_input_nodes[0]
    return node


def unexpanded(call: Call, weights: Operand, values: Operand) -> Operand:
    """Softmaxed weights as they were before they were copied along features of the values: one map, and not
    one for each feature."""
    source = weights.node
    while weights.value.softmaxes and source is not None and op_name(source) in SPREADING:
        source = source.all_input_nodes[0]
        sizes = call.ledger.shapes.get(source.name, ())
        if len(sizes) != weights.ndim or not all(
            a in (b, 1) for a, b in zip(sizes, weights.shape, strict=True)
        ):
            break
        copied = [axis for axis, size in enumerate(sizes) if size != weights.shape[axis]]
        behind = [axis - weights.ndim + values.ndim for axis in copied]
        if any(
            slot.varies(axis) for slot in values.value.slots if slot.strength for axis in behind if axis >= 0
        ):
            break
        tensor = weights.tensor
        for axis in copied:
            tensor = tensor.narrow(axis, 0, 1)
        weights = Operand(source, tensor, call.values[source])
    return weights


def weighs_data(call: Call, node: fx.Node | None) -> bool:
    """Whether a map, however laid out, meets data in some product, or data that come later."""
    stack = [before(node, LAYING)[-1]] if node is not None else []
    while stack:
        node = stack.pop()
        for user in node.users:
            others = [other for other in user.all_input_nodes if other is not node]
            if any(other not in call.values or call.values[other].from_input for other in others):
                return True
            if op_name(user) in LAYING:
                stack.append(user)
    return False


def behind(node: fx.Node) -> Iterator[fx.Node]:
    """All that comes of a node, the nearest first."""
    queue, seen = [node], {node}
    while queue:
        for user in queue.pop(0).users:
            if user not in seen:
                seen.add(user)
                queue.append(user)
                yield user


def named(node: fx.Node, names: Collection[str]) -> list[fx.Node]:
    """The nodes of these names in the graph of a node, in order."""
    return [other for other in node.graph.nodes if other.name in names]


def used_parts(node: fx.Node, place: int) -> list[fx.Node]:
    """The takings of one of a node's results, as far as they are used."""
    return [user for user in node.users if user.target is getitem and user.args[1] == place and user.users]


def calls_alike(node: fx.Node) -> list[fx.Node]:
    """All calls of one cell, in order: its states are tokens of one space."""
    return [n for n in node.graph.nodes if n.target == node.target and module_path(n) == module_path(node)]


def between(last: fx.Node, samplers: set[fx.Node]) -> tuple[fx.Node, ...]:
    """The operations between some nodes and the last, which is among them, in order."""
    behind: set[fx.Node] = set(samplers)
    ordered = list(last.graph.nodes)
    first = min(ordered.index(node) for node in samplers)
    between = ordered[first : ordered.index(last) + 1]
    for node in between:
        if any(used in behind for used in node.all_input_nodes):
            behind.add(node)
    needed = {last}
    for node in reversed(between):
        if node in needed:
            needed.update(used for used in node.all_input_nodes if used in behind)
    return tuple(node for node in between if node in needed and node not in samplers)


def first_in_its_module(node: fx.Node, others: Iterable[fx.Node]) -> bool:
    """Whether none of the others was run by the module that ran the node."""
    return module_path(node) not in {module_path(other) for other in others}


def is_score(call: Call, operand: Operand) -> bool:
    """Whether features of rows and columns were multiplied and summed up on the way to it."""
    stack = [operand.node]
    seen = set(stack)
    while stack:
        node = stack.pop()
        before = [] if node is None else node.all_input_nodes
        values = [call.values.get(each) for each in before]
        labelled = [isinstance(value, Value) and value.labelled for value in values]
        sums = node is not None and op_name(node) in SUMMING
        if sums and sum(labelled) > 1 and _sums_features(call, node):
            return True
        for each, value in zip(before, values, strict=True):
            if isinstance(value, Value) and len(value.active) > 1 and each not in seen:
                seen.add(each)
                stack.append(each)
    return False


def _sums_features(call: Call, product: fx.Node | None) -> bool:
    """Whether a product sums over an axis: only an einsum may not."""
    if product is None or op_name(product) != "aten::einsum":
        return product is not None
    inputs, arrow, output = str(product.args[0]).replace(" ", "").partition("->")
    return bool(arrow) and any(letter.isalpha() and letter not in output for letter in inputs)
