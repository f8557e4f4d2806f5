"""What a softmax is for whose largest weights are picked: experts of a network, or classes and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import getitem

from torch import fx

from fxplain.labels.call import aten, literal, op_name
from fxplain.labels.findings import Findings

PICKS = aten("topk sort argmax multinomial max argsort kthvalue")
ONLY_INDEX = aten("argmax multinomial argsort")
PRODUCTS = aten(
    "matmul mm bmm einsum baddbmm addmm linear tensordot mv dot conv1d conv2d conv3d convolution embedding "
    "_grouped_mm"
)
COMPARISONS = aten("gt ge lt le eq ne nonzero")
ROUTER = "expert router", "its largest weights select among parts of the network"
CLASSES = "class scores", "its largest weights are classes that the model returns"
TOKENS = "class scores", "by its largest weights tokens are picked"


def picked(softmax: fx.Node, findings: Findings) -> tuple[str, str] | None:
    """The role of a softmax over features whose largest weights are picked; None where none are.

    Experts are chosen by a place among the features, which decides what is computed next; or what is picked
    scales features. Scores of classes do neither: they rank tokens (boxes), and go out with their classes.
    """

    def stops(before: fx.Node, node: fx.Node) -> bool:
        return op_name(node) in PRODUCTS or widens(before, node, findings)

    picks = [node for node in _ways(softmax, stops) if op_name(node) in PICKS]
    if not picks:
        return None
    over_features = [node for node in picks if not _among_tokens(node, findings)]
    values = [softmax, *(value for node in picks for value in _results(node, 0))]
    indices = [index for node in over_features for index in _results(node, 1)]
    if any(_scales(value, findings) for value in values) or any(_decides(index) for index in indices):
        return ROUTER
    return CLASSES if len(over_features) == len(picks) else TOKENS


def _ways(start: fx.Node, stops: Callable[[fx.Node, fx.Node], bool]) -> Iterator[fx.Node]:
    """All nodes that are made of one, but not of those where it ``stops`` (told the node before, and it)."""
    stack, seen = [start], {start}
    while stack:
        before = stack.pop()
        for user in before.users:
            if user not in seen:
                seen.add(user)
                yield user
                if user.op != "output" and not stops(before, user):
                    stack.append(user)


def widens(before: fx.Node, node: fx.Node, findings: Findings) -> bool:
    """Whether a node multiplies what lies before it with features that it has not."""
    shapes = findings.ledger.shapes
    ours, made = shapes.get(before.name, ()), shapes.get(node.name, ())
    return op_name(node) == "aten::mul" and ours[-1:] != made[-1:]


def _among_tokens(pick: fx.Node, findings: Findings) -> bool:
    """Whether places along which tokens lie are picked."""
    operand = pick.all_input_nodes[0]
    ndim = len(findings.ledger.shapes.get(operand.name, ()))
    axis = int(literal(pick, "dim", -1)) % max(ndim, 1)
    return any(slot.varies(axis) for slot in findings.value(operand).active)


def _results(pick: fx.Node, place: int) -> list[fx.Node]:
    """The nodes of the values (0) or of the indices (1) that an operation picks."""
    if op_name(pick) in ONLY_INDEX:
        return [pick] if place == 1 else []
    return [user for user in pick.users if user.target is getitem and user.args[1] == place]


def _scales(weights: fx.Node, findings: Findings) -> bool:
    """Whether weights are multiplied with what is wider than they are, or summed up in a product."""

    def scaled(before: fx.Node, node: fx.Node) -> bool:
        return op_name(node) in PRODUCTS or widens(before, node, findings)

    def stops(before: fx.Node, node: fx.Node) -> bool:
        return scaled(before, node) or op_name(node) in (*PICKS, *COMPARISONS) or _suppresses(node)

    reached = {weights, *_ways(weights, stops)}
    return any(scaled(used, node) for node in reached for used in node.all_input_nodes if used in reached)


def _decides(index: fx.Node) -> bool:
    """Whether a place among the features decides over what further products are made of."""
    ways = _ways(index, lambda _, node: _suppresses(node))
    return any(op_name(node) in PRODUCTS for node in ways)


def _suppresses(node: fx.Node) -> bool:
    """Whether boxes that overlap are dropped: what lies behind is of those that were left."""
    return op_name(node).split("::")[-1] in ("nms", "batched_nms")
