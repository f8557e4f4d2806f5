"""Sums of products: linear maps, matrix products, einsum.

Every operation is written with a letter for each axis of its operands and of its result. Data without tokens
get them first; then the table of :mod:`fxplain.ops.meeting.table` says what the two operands are to each
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxplain.labels.call import Call
from fxplain.labels.labels import Slot, codes_of, compact, same_tokens
from fxplain.labels.value import Coarser, Operand, PartialSum, Single, Value
from fxplain.ops.meeting.features import one_token_a_place, pair_of_features
from fxplain.ops.meeting.sides import Met, Side, sizes_of
from fxplain.ops.meeting.table import meet, weights_and_values
from fxplain.ops.reading import letters_for, moved
from fxplain.ops.tokens import tokens_at
from fxplain.recognise.around import unexpanded
from fxplain.recognise.linear_attention import read_summaries, still_summed

LONGEST_SCORE = 2
"""How many sums of products may lie between a query that was added to keys, and scores."""


def contract(call: Call, one: Operand, other: Operand, spec: str) -> Value:
    """The labels of ``einsum(spec, one, other)``; finds attentions and mixings on the way."""
    inputs, output = spec.split("->")
    letters = inputs.split(",")
    left, right = (Side(operand, own, output) for operand, own in zip((one, other), letters, strict=True))
    left, right = (_without_padding(side) for side in _wake(call, left, right))
    left, right = _by_its_sides(left, right), _by_its_sides(right, left)
    met = meet(call, left, right)
    slots = list(met.slots)
    if call.result.ndim == len(output):
        slots = read_summaries(call, left, right, slots)
    steps = bool(call.ledger.sites) and call.ledger.sites[-1].node is call.node
    value = call.carry(one, other, slots=slots, partial=met.partial)
    gave_way = value.gave_way
    value = value.having(
        single=() if steps else _still_single(gave_way.single),
        shared_map=(gave_way.shared_map or met.shared_map) and not steps,
        depth=value.depth + 1,
    )
    by_parameter = left.operand.is_parameter or right.operand.is_parameter
    if by_parameter and slots:
        value = value.having(coarser=_still_coarser(left) or _still_coarser(right))
    if steps or not by_parameter:
        summaries = frozenset({call.node} & set(call.ledger.remarks.summaries)) or still_summed(call, value)
        value = value.having(samples=frozenset(), summaries=summaries)
    # what is no map between tokens carries no attention weights any further
    return value if len(slots) > 1 and not steps else replace(value, softmaxes=frozenset())


def _wake(call: Call, left: Side, right: Side) -> tuple[Side, Side]:
    """Give tokens to data that have none: all axes but the summed ones (and heads, if both are data).

    Only raw data become tokens beside other data: what was labelled once and is no more holds features.
    """
    both_data = left.operand.value.from_input and right.operand.value.from_input
    shared = "".join(set(left.letters) & set(right.letters)) if both_data else ""
    for_left = not left.operand.is_parameter or right.operand.is_parameter
    for_right = not right.operand.is_parameter
    if both_data:
        # weights without labels times labelled values are a pooling, not scores: leave them without
        for_left = call.ledger.tokens.is_raw(left.operand.value.dormant) and not right.summed_out
        for_right = call.ledger.tokens.is_raw(right.operand.value.dormant) and not left.summed_out
        left, right = (replace(side, operand=one_token_a_place(call, side.operand)) for side in (left, right))
        left, right = _place_by_place(call, left, right), _place_by_place(call, right, left)
        left, right = _raw_values(call, left, right), _raw_values(call, right, left)
    left = _awake(call, left, shared) if for_left else left
    return left, _awake(call, right, shared) if for_right else right


def _awake(call: Call, side: Side, heads: str) -> Side:
    return replace(
        side, operand=tokens_at(call, side.operand, side.axes_of(side.summed), side.axes_of(heads))
    )


def _place_by_place(call: Call, raw: Side, weights: Side) -> Side:
    """Raw data whose features are mixed by weights that each place tells for itself: places are tokens."""
    own = set().union(*(_letters(weights, slot) for slot in weights.slots))
    rows = {letter for letter, size in sizes_of(weights).items() if size > 1} - {*raw.letters}
    alone = bool(rows) and not own & rows and own <= {*raw.letters} - {*raw.summed}
    if not (own and alone) or not call.ledger.tokens.is_raw(raw.operand.value.dormant):
        return raw
    features = "".join(c for c in raw.letters if c in raw.summed or c not in weights.letters)
    heads = "".join(c for c in raw.letters if c not in own)
    return replace(raw, operand=tokens_at(call, raw.operand, raw.axes_of(features), raw.axes_of(heads)))


def _letters(side: Side, slot: Slot) -> set[str]:
    """The letters along which a slot's tokens lie."""
    return {side.letters[axis] for axis in slot.token_axes}


def _raw_values(call: Call, values: Side, weights: Side) -> Side:
    """Raw data that softmaxed weights of tokens multiply are tokens along the summed axis: no linear map need
    to lie between an input and its weighted mean."""
    weighs = weights.summed_out and weights.operand.value.softmaxes
    if (
        not weighs
        or values.operand.value.labelled
        or not call.ledger.tokens.is_raw(values.operand.value.dormant)
    ):
        return values
    sizes = sizes_of(weights)
    features = "".join(letter for letter in values.letters if sizes.get(letter, 1) == 1)
    return replace(values, operand=tokens_at(call, values.operand, values.axes_of(features)))


def _without_padding(side: Side) -> Side:
    """See past the padding of a band of a map, or its masked corners.

    They make rows and columns both seem to vary along the summed axis.
    """
    if len(side.slots) < 2 or side.kept or not side.operand.value.softmaxes:
        return side
    seen = [_past_padding(slot, side) for slot in side.slots]
    return side.with_slots(seen)


def _past_padding(slot: Slot, side: Side) -> Slot:
    """The slot constant along the summed axes, if all labels with a weight are one there; else as it was."""
    weighty = side.operand.tensor.cpu() != 0
    for axis, size in enumerate(slot.labels.shape):
        weighty = weighty.any(axis, keepdim=True) if size == 1 else weighty
    top = (slot.labels * weighty).amax(side.axes_of(side.summed), keepdim=True)
    constant = bool(((slot.labels == top) | ~weighty | (codes_of(slot.labels) < 0)).all())
    return replace(slot, labels=compact(top)) if constant else slot


def _by_its_sides(weights: Side, values: Side) -> Side:
    """Weights of pairs, as a map of the two tokens of each where they weigh values of the one."""
    pair = weights.operand.value.gave_way.coarser
    if pair is None or pair.main is None or weights.kept or len(weights.summed_out) != 1:
        return weights
    sides = pair.main, pair.slot
    rows = [slot for slot in sides if not weights.over(slot)]
    columns = [slot for slot in sides if weights.over(slot)]
    if len(rows) != 1 or not values.summed_out or not same_tokens(columns[0], values.summed_out[0]):
        return weights
    return weights.with_slots([*rows, *columns])


def _still_single(given: Sequence[Single]) -> tuple[Single, ...]:
    """Queries that were added to keys a short while ago: beyond, what comes of the sum is no score."""
    later = (replace(query, products=query.products + 1) for query in given)
    return tuple(query for query in later if query.products <= LONGEST_SCORE)


def _still_coarser(data: Side) -> Coarser | None:
    coarser = data.operand.value.gave_way.coarser or pair_of_features(data)
    if coarser is None or coarser.products >= LONGEST_SCORE or data.over(coarser.slot):
        return None
    return replace(coarser.moved(data.laid), products=coarser.products + 1)


def summed_product(call: Call, operand: Operand, axes: Sequence[int]) -> Met | None:
    """``(one * other).sum(axes)``, which is a contraction of the two: scores, or an attention.

    None where it is neither: weights of tokens without rows that sum them up are a pooling.
    """
    made = operand.value.unsummed.product
    if made is None or call.ledger.shapes[made.node.name] != operand.shape:
        return None
    letters = letters_for(operand.ndim)
    output = "".join(c for axis, c in enumerate(letters) if axis not in axes)
    factors = unexpanded(call, *made.factors), unexpanded(call, *made.factors[::-1])
    one, other = (Side(factor, letters[operand.ndim - factor.ndim :], output) for factor in factors)
    one, other = _raw_values(call, one, other), _raw_values(call, other, one)
    if one.summed_out and other.summed_out:
        if weights_and_values(call, one, other) is None:
            return None
    elif one.summed_out or other.summed_out:
        weights = other if one.summed_out else one
        if not (weights.kept and weights.operand.value.softmaxes):
            return None
    elif not (one.kept and other.kept):
        return None
    value = contract(call, one.operand, other.operand, f"{one.letters},{other.letters}->{output}")
    partial = value.unsummed.partial
    slots = [replace(slot, labels=moved(slot.labels, output, letters)) for slot in value.slots]
    return Met(slots, partial if isinstance(partial, PartialSum) else None)
