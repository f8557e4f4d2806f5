"""Tensors made from nothing: counting ones number their places, constant ones say nothing."""

from __future__ import annotations

import torch

from fxplain.labels.call import Call, aten
from fxplain.labels.elements import Root
from fxplain.labels.labels import DORMANT, WEAK, Slot, encode
from fxplain.labels.value import NOTHING, Operand, Value
from fxplain.ops.table import transfer
from fxplain.ops.tokens import fresh

CONSTANT = """zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full
new_empty scalar_tensor eye randint randperm tril_indices triu_indices zero
fill empty_strided new_empty_strided empty_permuted"""

NOISE = "rand randn rand_like randn_like"
COUNTING = "arange linspace logspace range"
MADE = frozenset(aten(" ".join((CONSTANT, NOISE, COUNTING))))
"""Operations whose result holds nothing of their operands."""

DERIVED = """one_hot argmax argmin nonzero nonzero_numpy bincount searchsorted bucketize histc unique_dim
_unique2 unique_consecutive is_nonzero equal item _local_scalar_dense all any isin bernoulli"""


@transfer(*aten(CONSTANT))
def constant(call: Call) -> Value:
    """Depends on shapes alone."""
    return NOTHING


@transfer(*aten(DERIVED))
def derived(call: Call) -> Value | tuple[Value, ...]:
    """No labels; what came from an input is still known to depend on it."""
    value = call.carry(*call.operands(), softmaxes=frozenset()) if call.operands() else NOTHING
    return (value,) * len(call.result) if isinstance(call.result, tuple | list) else value


@transfer(*aten(NOISE))
def noise(call: Call) -> Value:
    """Places that are drawn apart are tokens of their own, if they become tokens: slots that start from one
    learned vector and noise."""
    return Value(slots=(fresh(call, Operand(call.node, call.result, NOTHING)),))


@transfer(*aten(COUNTING))
def counting(call: Call) -> Value:
    """Each place is an element of its own, as in a parameter."""
    start = call.ledger.tokens.elements.reserve(
        Root(call.node.name, is_input=False, strength=WEAK, is_constant=True), call.result.shape
    )
    codes = torch.arange(call.result.numel()).view(call.result.shape) + start
    return Value(slots=(Slot(encode(-1, codes), DORMANT),), root=call.node.name)
