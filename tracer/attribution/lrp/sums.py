"""Additions: of two activations by the set's rule, of an activation and a constant by whether it absorbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attribution.lrp.sides import short_name
from fxplain.attribution.lrp.table import Call, Shares, relevance_rule
from fxplain.labels.call import aten
from fxplain.rules.lrp_sums import epsilon_split


@relevance_rule(*aten("add sub rsub"))
def addition(call: Call) -> Shares:
    """``a + alpha b``, ``a - alpha b``, ``alpha b - a``."""
    alpha = call.argument("alpha", 1)
    signs = {"aten::add": (1, alpha), "aten::sub": (1, -alpha), "aten::rsub": (-alpha, 1)}[call.op]
    names = ("self", "other")
    return sum_of(call, [(call.source(n), s * call.argument(n)) for n, s in zip(names, signs, strict=True)])


@relevance_rule("aten::lerp")
def interpolation(call: Call) -> Shares:
    """``a (1 - w) + b w``; w is held constant."""
    weight = call.argument("weight")
    parts = (("self", 1 - weight), ("end", weight))
    return sum_of(call, [(call.source(n), w * call.argument(n)) for n, w in parts])


@relevance_rule(*aten("addcmul addcdiv"))
def added_product(call: Call) -> Shares:
    """``a + value b c`` and ``a + value b / c``: the second term's share goes to b."""
    one, other, value = call.argument("tensor1"), call.argument("tensor2"), call.argument("value", 1)
    product = value * (one * other if call.op == "aten::addcmul" else one / other)
    main = call.source("tensor1" if call.carries("tensor1") or not call.carries("tensor2") else "tensor2")
    return sum_of(call, [(call.source("self"), call.argument("self")), (main, product)])


Term = tuple[fx.Node | None, Any]


def sum_of(call: Call, terms: Sequence[Term]) -> Shares:
    """The shares of terms (node, what it adds), numbers and constants among them."""
    result = call.result
    active = [(n, v) for n, v in terms if n is not None and n in call.sides.carriers]
    if len({call.sides.roots[n] for n, _ in active}) == 1 and len(active) > 1 and _same_shape(active, result):
        # a function of one tensor, element by element, that is spelled out (x + x³): an activation
        return [(active[0][0], call.relevance)]
    moving = [(n, v) for n, v in active if not _is_shift(call, n, active)]
    fixed = [(n, v) for n, v in terms if not any(n is m for m, _ in moving)]
    values = [v.expand_as(result) for _, v in moving]
    nodes: list[fx.Node | None] = [n for n, _ in moving]
    newborn = all(n in call.sides.embedded for n, _ in moving) and not call.rules.absorbing
    if taking := [v for n, v in fixed if _takes(call, n, v) and not newborn]:
        values.append(sum(taking[1:], taking[0]) + torch.zeros_like(result))
        nodes.append(None)
    parts = _split(call, values, nodes)
    return [
        (node, part if node is None else back_to(part, call, node))
        for node, part in zip(nodes, parts, strict=True)
    ]


def _split(call: Call, values: Sequence[Tensor], nodes: Sequence[fx.Node | None]) -> list[Tensor]:
    if len(values) == 1:
        return [call.relevance]
    if call.rules.absorbing and None in nodes:  # a bias is no branch: it takes what it adds
        return epsilon_split(values, call.relevance, call.rules.epsilon)
    return call.rules.addition(values, call.relevance, call.total)


def back_to(part: Tensor, call: Call, node: fx.Node) -> Tensor:
    """Relevance of a term as it was broadcast, summed to the shape of its node."""
    shape = next(value.shape for operand, value in call.operands if operand is node)
    return part.sum_to_size(shape)


def _same_shape(active: Sequence[Term], result: Tensor) -> bool:
    return all(value.shape == result.shape for _, value in active)


def _is_shift(call: Call, node: fx.Node, active: Sequence[Term]) -> bool:
    """Whether a term only shifts another by a statistic (the mean, the maximum before an exponential)."""
    size = max(value.numel() for _, value in active)
    own = max(value.numel() for n, value in active if n is node)
    if len(active) < 2 or own == size or not call.sides.is_statistic(node):
        return False
    return not (call.rules.centring and _is_mean(call, node))


def _is_mean(call: Call, node: fx.Node) -> bool:
    return short_name(node) == "mean"


def _takes(call: Call, node: fx.Node | None, value: Any) -> bool:
    """Whether a constant takes a share of its own, which is lost to the input."""
    if node is not None and node in call.sides.carriers:
        return False
    if call.rules.absorbing:
        return True
    return node in call.sides.parameters and isinstance(value, Tensor) and is_table(value)


def is_table(value: Tensor) -> bool:
    """Whether a parameter varies along more than one axis: positions, not a bias of features or channels."""
    return sum(size > 1 for size in value.shape) > 1
