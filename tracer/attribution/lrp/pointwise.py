"""Operations that work element by element: activations are the identity, products are shared."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxplain.attribution.lrp.moving import linear_map
from fxplain.attribution.lrp.sums import back_to
from fxplain.attribution.lrp.table import Call, Shares, relevance_rule
from fxplain.labels.call import aten


@relevance_rule(
    *aten("""
dropout alpha_dropout feature_dropout native_dropout clone contiguous to _to_copy type_as to_dense gelu
celu selu rrelu hardshrink softshrink tanhshrink logsigmoid log_sigmoid log_softmax _log_softmax
threshold normalize nan_to_num relu6 hardtanh hardsigmoid hardswish cumprod conj resolve_conj
resolve_neg conj_physical prelu""")
)
def identity(call: Call) -> Shares:
    """A function of one activation, element by element, hands its relevance on as it is."""
    return [(node, back_to(call.relevance, call, node)) for node, _ in call.carriers[:1]]


def pointwise(call: Call) -> Shares | None:
    """The rule for what PyTorch tags as pointwise, without a rule of its own; None with two activations."""
    if len({call.sides.roots[node] for node, _ in call.carriers}) > 1:
        return None
    return identity(call)


@relevance_rule(*aten("mul"))
def multiplication(call: Call) -> Shares:
    """Of two activations by the set's rule; a constant, or a statistic such as 1 / std, only scales."""
    nodes = [(node, value) for node, value in call.operands if node in call.sides.carriers]
    if len(nodes) < 2:
        return linear_map(call) if call.result.is_complex() else identity(call)  # a turn mixes two numbers
    if nodes[0][0] is nodes[1][0] or _one_function(call, nodes):
        return identity(call)
    for (node, _), (other, value) in (nodes, nodes[::-1]):
        if value.numel() < call.result.numel() and call.sides.is_statistic(other):
            return [(node, back_to(call.relevance, call, node))]
    if call.rules.gate == "gated":
        gates = [call.sides.is_gate(node) or node in call.sides.maps for node, _ in nodes]
        if gates[0] != gates[1]:
            node = nodes[0 if gates[1] else 1][0]
            return [(node, back_to(call.relevance, call, node))]
    return [(node, back_to(call.relevance / 2, call, node)) for node, _ in nodes]


def _one_function(call: Call, nodes: list[tuple[fx.Node, Tensor]]) -> bool:
    """Whether both factors are functions of one tensor (x · sigmoid(x)): an activation, spelled out."""
    roots = {call.sides.roots[node] for node, _ in nodes}
    return len(roots) == 1 and all(value.shape == call.result.shape for _, value in nodes)


@relevance_rule(*aten("div floor_divide fmod remainder"))
def division(call: Call) -> Shares:
    """The denominator is held constant, if the numerator carries relevance."""
    name = "self" if call.carries("self") else "other"
    node = call.source(name)
    assert node is not None
    return [(node, back_to(call.relevance, call, node))]


@relevance_rule(*aten("pow float_power"))
def power(call: Call) -> Shares:
    """The exponent is held constant, if the base carries relevance."""
    node = call.source("self") if call.carries("self") else call.source("exponent")
    assert node is not None
    return [(node, back_to(call.relevance, call, node))]


@relevance_rule(*aten("glu"))
def gated_linear_unit(call: Call) -> Shares:
    """``a · sigmoid(b)`` of the halves a and b of one tensor."""
    node, relevance = call.carriers[0][0], call.relevance
    gated = relevance if call.rules.gate == "gated" else relevance / 2
    return [(node, torch.cat([gated, relevance - gated], call.argument("dim", -1)))]
