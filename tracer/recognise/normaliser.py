"""What made weights out of scores, where no softmax was seen: read off the values of the weights.

``exp(scores) / exp(scores).sum()`` is a softmax however it is spelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxplain.labels.call import Call, op_name
from fxplain.labels.value import NOTHING, Operand, Value

TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far from 1 a row may sum up; 1e-4 in other types."""


def normaliser_of(call: Call, weights: Operand, sums: Tensor) -> str:
    """``softmax`` if one was seen or the rows sum to 1, ``sigmoid`` if one made the weights, or ``none``."""
    if weights.value.softmaxes or (is_positive(weights) and all_ones(sums, weights.tensor.dtype)):
        return "softmax"
    return "sigmoid" if _behind_sigmoid(call, weights.node) else "none"


def row_sums(weights: Tensor, summed: Sequence[int]) -> Tensor:
    """Sums over the columns, which keep their axes at size 1, in float32 or better."""
    return weights.to(torch.promote_types(weights.dtype, torch.float32)).sum(tuple(summed), keepdim=True)


def is_positive(weights: Operand) -> bool:
    return bool((weights.tensor >= 0).all())


def all_ones(values: Tensor, dtype: torch.dtype) -> bool:
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
