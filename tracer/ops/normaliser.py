"""What made weights out of scores, where no softmax was seen: read off the values of the weights.

``exp(scores) / exp(scores).sum()`` is a softmax however it is spelled, also where the sum of a row divides
what the row has summed up, after the product with the values: (E v) / sum(E) is (E / sum(E)) v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from fxplain.labels import NOTHING, Value
from fxplain.ledger import RowSums, Site
from fxplain.ops.layout import IDENTITY, UNARY
from fxplain.ops.table import Call, Operand, aten, op_name

MOVES = frozenset(aten(f"{UNARY} {IDENTITY}"))
DIVISIONS = frozenset(aten("div divide true_divide"))
PRODUCTS = frozenset(aten("mul"))
TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far from 1 a row may sum up; 1e-4 in other types."""


def normaliser_of(call: Call, weights: Operand, sums: Tensor) -> str:
    """``softmax`` if one was seen or the rows sum to 1, ``sigmoid`` if one made the weights, or ``none``."""
    if weights.value.softmaxes or (_positive(weights) and _ones(sums, weights.tensor.dtype)):
        return "softmax"
    return "sigmoid" if _behind_sigmoid(call, weights.node) else "none"


def row_sums(weights: Tensor, summed: Sequence[int]) -> Tensor:
    """Sums over the columns, which keep their axes at size 1, in float32 or better."""
    return weights.to(torch.promote_types(weights.dtype, torch.float32)).sum(tuple(summed), keepdim=True)


def _positive(weights: Operand) -> bool:
    return bool((weights.tensor >= 0).all())


def _ones(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether all are 1, but for rows that attend to nothing."""
    gap = torch.where(values == 0, 0.0, (values - 1).abs())
    return bool((gap <= TOLERANCES.get(dtype, 1e-4)).all() and values.any())


def _behind_sigmoid(call: Call, weights: fx.Node | None) -> bool:
    """Whether a sigmoid lies between scores and weights, that is, where rows and columns have labels."""
    stack, seen = [weights], {weights}
    while stack:
        node = stack.pop()
        if node is None or op_name(node) == "aten::sigmoid":
            return node is not None
        for earlier in node.all_input_nodes:
            value = call.values.get(earlier, NOTHING)
            if earlier not in seen and isinstance(value, Value) and len(value.active) > 1:
                seen.add(earlier)
                stack.append(earlier)
    return False


def await_division(call: Call, site: Site, weights: Operand, sums: Tensor) -> None:
    """Note the row sums, laid out as the site's output, to be looked for among the output's divisors."""
    known = RowSums(site.index, sums.expand(call.result.shape), _positive(weights))
    call.ledger.undivided[call.node.name] = known


def follow(call: Call) -> None:
    """Carry the row sums along with the output that they may divide; mark the site where they do."""
    for place, node in enumerate(call.node.args[:2]):
        known = call.ledger.undivided.get(node.name) if isinstance(node, fx.Node) else None
        if known is None or not isinstance(call.result, Tensor):
            continue
        if call.op in MOVES and place == 0:
            sums = call.node.target(known.sums, *call.args[1:], **call.kwargs)  # type: ignore[operator]
            call.ledger.undivided[call.node.name] = replace(known, sums=sums)
        elif _divides(call, place, known.sums):
            site = call.ledger.sites[known.site]
            normaliser = "softmax" if known.positive else site.normaliser
            call.ledger.sites[known.site] = replace(site, divided=True, normaliser=normaliser)
            call.ledger.data_dependent = True  # that the divisor is the sum was seen for these inputs


def _divides(call: Call, place: int, sums: Tensor) -> bool:
    """Whether the other operand is the sums, or their reciprocal, of every row."""
    other = call.args[1 - place] if len(call.args) > 1 else None
    if not isinstance(other, Tensor) or call.result.shape != sums.shape:
        return False
    if call.op in DIVISIONS:
        return place == 0 and _ones(sums / other, call.result.dtype)
    return call.op in PRODUCTS and _ones(sums * other, call.result.dtype)
