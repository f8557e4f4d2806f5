"""Attention one key at a time: a product of a map's column with one key's value, which a loop adds up.

``out = out + weights[..., j : j + 1] * values[:, j]``: each product is an attention of one key, and what adds
them up (:mod:`fxplain.recognise.divided_late`) finds that they are one.
"""

from __future__ import annotations

from fxplain.labels.call import Call
from fxplain.labels.labels import Slot, same_tokens
from fxplain.labels.value import Operand, PartialSum, Value
from fxplain.ops.meeting.attending import attend
from fxplain.ops.meeting.sides import Side
from fxplain.ops.reading import letters_for

RULE = "one key at a time"


def weighed_key(call: Call) -> Value | None:
    """The value of ``weights * value`` where the value is of the one token that the weights are of too.

    None where the product is something else.
    """
    operands = call.operands()
    if len(operands) != 2:
        return None
    for weights, value in (operands, operands[::-1]):
        rows = _row(call, weights, value)
        if rows is not None:
            call.matched(RULE)
            return _attention(call, weights.with_slots(rows), value)
    return None


def _row(call: Call, weights: Operand, value: Operand) -> list[Slot] | None:
    """The slots of the weights, that of the key last; None where there is none."""
    slots, given = weights.value.active, value.value.active
    if len(slots) != 2 or len(given) != 1 or given[0].token_axes or value.node is None:
        return None
    if isinstance(value.value.unsummed.partial, PartialSum):
        call.unmatched(RULE, "what is weighed is what an attention gave, and no value of one key")
        return None
    if not _features(call, weights, value):
        call.unmatched(RULE, "what is weighed has no features of its own")
        return None
    keys = [slot for slot in slots if not slot.token_axes and same_tokens(slot, given[0])]
    if not keys:
        call.unmatched(RULE, "the weights are of another token than what is weighed")
        return None
    row = slots[0] if keys[-1] is slots[1] else slots[1]
    # a score of one query and one key may be of two tokens for other reasons
    return [row, keys[-1]] if row.token_axes or weights.value.softmaxes else None


def _features(call: Call, weights: Operand, value: Operand) -> list[int]:
    """Axes of the result along which the value varies and the weights do not: features."""
    ndim = call.result.ndim
    wide, narrow = ((1,) * (ndim - o.ndim) + o.shape for o in (value, weights))
    return [axis for axis in range(ndim) if narrow[axis] == 1 < wide[axis]]


def _attention(call: Call, weights: Operand, value: Operand) -> Value:
    letters = letters_for(call.result.ndim + 1)
    output, key = letters[:-1], letters[-1]
    ours, theirs = (output[len(output) - o.ndim :] for o in (weights, value))
    column = output[_features(call, weights, value)[-1]]
    ours = ours.replace(column, key) if column in ours else ours
    if key not in ours:
        raise ValueError("weights of one key without an axis for it")
    met = attend(call, Side(weights, ours, output), Side(value, theirs, output))
    made = call.carry(weights, value, slots=met.slots[:1], partial=met.partial)
    return made.having(softmaxes=frozenset(), single=())
