"""Sums of products: linear maps, matrix products, einsum. Here attentions are found.

Every operation is written with a letter for each axis of its operands and result. A slot survives if its
labels do not vary along a summed letter. Two labelled operands whose labels *both* vary along one are weights
and values: an attention, or another token mixing with weights that depend on the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxplain.labels.call import Call
from fxplain.labels.labels import (
    Asked,
    Beside,
    Slot,
    Value,
    codes_of,
    compact,
    same_tokens,
)
from fxplain.labels.merge import merge
from fxplain.labels.operand import Operand
from fxplain.ops.meeting.attending import attend, free, note_content
from fxplain.ops.meeting.features import one_token_a_place, pair_of_features
from fxplain.ops.meeting.linear_mixing import mixed_by_data, mixed_by_parameter, summed_place_by_place
from fxplain.ops.meeting.reading import (
    Side,
    has_both_sides,
    has_columns,
    is_map,
    leaves_features,
    letters_for,
    nested,
    reads_state,
    same_single,
    sizes_of,
    told_by_rows,
    weighs_one,
)
from fxplain.ops.sampling import sum_up
from fxplain.ops.tokens import woken
from fxplain.recognise.around import unexpanded
from fxplain.recognise.linear_attention import read_summaries, still_summed
from fxplain.recognise.read_later import read_by_data
from fxplain.recognise.shared_map import TIED, tied_scores

LONGEST_SCORE = 2
"""How many sums of products may lie between a query that was added to keys, and scores."""


def contract(call: Call, one: Operand, other: Operand, spec: str) -> Value:
    """The labels of ``einsum(spec, one, other)``; finds attentions and mixings on the way."""
    inputs, output = spec.split("->")
    left_letters, right_letters = inputs.split(",")
    summed = "".join(letter for letter in dict.fromkeys(left_letters + right_letters) if letter not in output)
    left, right = Side(one, left_letters, summed), Side(other, right_letters, summed)
    left, right = (_without_padding(side) for side in _wake(call, left, right))
    left, right = _by_its_sides(left, right), _by_its_sides(right, left)
    points = _points(call, left, right, output)
    by_parameter = left.operand.is_parameter or right.operand.is_parameter
    slots: Sequence[Slot]
    if points is not None:
        slots = points
    elif by_parameter:
        data, weight = (right, left) if left.operand.is_parameter else (left, right)
        slots = mixed_by_parameter(call, data, weight, output)
    else:
        slots = _bilinear(call, left, right, output)
        if call.result.ndim == len(output):
            slots = read_summaries(call, left, right, slots)
    attends = len(call.ledger.sites) > 0 and call.ledger.sites[-1].node is call.node
    value = call.carry(one, other, slots=slots)
    value = replace(value, tied=(value.tied or call.node in call.ledger.tied) and not attends)
    value = replace(value, asked=() if attends else _still_asked(value), depth=value.depth + 1)
    if by_parameter and slots:
        value = replace(value, beside=_still_beside(left, output) or _still_beside(right, output))
    if attends or not by_parameter:
        made = frozenset({call.node} & set(call.ledger.summaries))
        value = replace(value, sampled=frozenset(), summed=made or still_summed(call, value))
    # what is no map between tokens carries no attention weights any further
    return value if len(slots) > 1 and not attends else replace(value, softmaxes=frozenset())


def _points(call: Call, left: Side, right: Side, output: str) -> list[Slot] | None:
    """The slots of a sum over points at which tokens sampled a grid; None where it is no such sum."""
    for side, other in ((left, right), (right, left)):
        if side.operand.value.sampled and side.killed and side.alive and not other.killed:
            alive = sum_up(call, side.operand, side.axes_of(side.summed))
            return None if alive is None else [side.moved(slot, output) for slot in alive]
    return None


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
        for_left = call.ledger.is_raw(left.operand.value.dormant) and not right.killed
        for_right = call.ledger.is_raw(right.operand.value.dormant) and not left.killed
        left, right = (replace(side, operand=one_token_a_place(call, side.operand)) for side in (left, right))
        left, right = _place_by_place(call, left, right), _place_by_place(call, right, left)
    if both_data:
        left, right = _raw_values(call, left, right), _raw_values(call, right, left)
    if for_left:
        left = replace(
            left, operand=woken(call, left.operand, left.axes_of(left.summed), left.axes_of(shared))
        )
    if for_right:
        right = replace(
            right, operand=woken(call, right.operand, right.axes_of(right.summed), right.axes_of(shared))
        )
    return left, right


def _place_by_place(call: Call, raw: Side, weights: Side) -> Side:
    """Raw data whose features are mixed by weights that each place tells for itself: places are tokens."""
    told = set().union(*(_letters(weights, slot) for slot in weights.slots))
    rows = {letter for letter, size in sizes_of(weights).items() if size > 1} - {*raw.letters}
    alone = bool(rows) and not told & rows and told <= {*raw.letters} - {*raw.summed}
    if not (told and alone) or not call.ledger.is_raw(raw.operand.value.dormant):
        return raw
    features = "".join(c for c in raw.letters if c in raw.summed or c not in weights.letters)
    heads = "".join(c for c in raw.letters if c not in told)
    return replace(raw, operand=woken(call, raw.operand, raw.axes_of(features), raw.axes_of(heads)))


def _letters(side: Side, slot: Slot) -> set[str]:
    """The letters along which a slot's tokens lie."""
    return {side.letters[axis] for axis in slot.token_axes}


def _raw_values(call: Call, values: Side, weights: Side) -> Side:
    """Raw data that softmaxed weights of tokens multiply are tokens along the summed axis: no linear map need
    to lie between an input and its weighted mean."""
    weighs = weights.killed and weights.operand.value.softmaxes
    if not weighs or values.operand.value.labelled or not call.ledger.is_raw(values.operand.value.dormant):
        return values
    sizes = sizes_of(weights)
    features = "".join(letter for letter in values.letters if sizes.get(letter, 1) == 1)
    return replace(values, operand=woken(call, values.operand, values.axes_of(features)))


def _without_padding(side: Side) -> Side:
    """See past the padding of a band of a map, or its masked corners.

    They make rows and columns both seem to vary along the summed axis.
    """
    if len(side.slots) < 2 or side.alive or not side.operand.value.softmaxes:
        return side
    seen = [_past_padding(slot, side) for slot in side.slots]
    return replace(side, operand=side.operand.with_slots(seen))


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
    beside = weights.operand.value.beside
    if beside is None or beside.main is None or weights.alive or len(weights.killed) != 1:
        return weights
    sides = beside.main, beside.slot
    rows = [slot for slot in sides if not weights.over(slot)]
    columns = [slot for slot in sides if weights.over(slot)]
    if len(rows) != 1 or not values.killed or not same_tokens(columns[0], values.killed[0]):
        return weights
    return replace(weights, operand=weights.operand.with_slots([*rows, *columns]))


def _bilinear(call: Call, left: Side, right: Side, output: str) -> list[Slot]:
    """Data times data: scores (both slots live on), or weights times values (an attention)."""
    if left.killed and right.killed:
        return _both_summed(call, left, right, output)
    for side, rest in ((left, right), (right, left)):
        if side.killed and not side.alive and side.operand.value.from_input:
            if rest.alive and (rest.operand.value.softmaxes or told_by_rows(rest)):
                return attend(call, rest, side, output)
            return mixed_by_data(call, rest, side, output)
    for side, rest in ((left, right), (right, left)):
        weighing = None if side.killed or rest.killed else weighs_one(side, rest)
        if weighing is not None:
            return attend(call, weighing, rest, output)
        if (
            not (side.killed or rest.killed)
            and side.slots
            and side.operand.value.softmaxes
            and free(side, rest)
        ):
            note_content(call, rest)
    lefts = [left.moved(slot, output) for slot in left.alive]
    rights = [right.moved(slot, output) for slot in right.alive]
    if not left.summed:
        return list(merge([lefts, rights]))
    if leaves_features(left, right, output):
        # no map: a token that reads a state which it is part of itself, or the state of a whole chunk
        rights = [slot for slot in rights if not any(same_single(slot, other) for other in lefts)]
        finer = any(nested(one, other) for one in lefts for other in rights)
        if finer and reads_state(left, right, output):
            return list(merge([lefts, rights]))
    alike = len(lefts) == len(rights) == 1 and lefts[0].axes == rights[0].axes and lefts[0].token_axes
    if alike and not has_both_sides(left, right):
        return list(merge([lefts, rights]))
    return [*lefts, *rights]


def _both_summed(call: Call, left: Side, right: Side, output: str) -> list[Slot]:
    """Data times data, where tokens of both lie along what is summed: an attention, or a sum over tokens."""
    if is_map(left, right) and is_map(right, left):
        # a product of maps is a map: what multiplies the values in the end is their product
        return [side.moved(slot, output) for side in (left, right) for slot in side.alive]
    pooled = summed_place_by_place(call, left, right, output)
    if pooled is not None:
        return pooled
    weights, values = _weights_and_values(call, left, right, output)
    if weights is not None and values is not None:
        if not weights.operand.value.softmaxes and has_columns(values, weights):
            return [side.moved(slot, output) for side in (weights, values) for slot in side.alive]
        return attend(call, weights, values, output)
    scores = tied_scores(left, right, output)
    if scores is not None:
        call.ledger.tied.add(call.node)
        call.matched(TIED)
        return scores
    call.unmatched(TIED, "the tokens that it sums over have no columns of their own on both sides")
    assert right.operand.node is not None
    call.ledger.summaries[call.node] = right.operand.node, right.killed[0]
    return [side.moved(slot, output) for side in (left, right) for slot in side.alive]


def _weights_and_values(call: Call, left: Side, right: Side, output: str) -> tuple[Side | None, Side | None]:
    """Which operand holds the weights: the one with a row slot beside, or softmaxed scores that no query asks
    for."""
    sides = [(left, right), (right, left)]
    rowed = [(w, v) for w, v in sides if w.alive and len(w.slots) > 1]
    if len(rowed) == 2:
        rowed = [(w, v) for w, v in rowed if w.operand.value.softmaxes] or rowed[:1]
    if rowed:
        return rowed[0]
    for weights, values in sides:
        apart = [output.index(weights.letters[axis]) for axis in free(weights, values)]
        if weights.operand.value.softmaxes and not (apart and read_by_data(call, apart)):
            return weights, values
    for weights, values in sides:
        if weights.operand.value.asked and not values.operand.value.asked and not free(weights, values):
            return weights, values  # what a query that was added to the keys makes of them, without a softmax
    return None, None


def _still_asked(value: Value) -> tuple[Asked, ...]:
    """Queries that were added to keys a short while ago: beyond, what comes of the sum is no score."""
    later = (replace(query, products=query.products + 1) for query in value.asked)
    return tuple(query for query in later if query.products <= LONGEST_SCORE)


def _still_beside(data: Side, output: str) -> Beside | None:
    beside = data.operand.value.beside or pair_of_features(data)
    if beside is None or beside.products >= LONGEST_SCORE or data.over(beside.slot):
        return None
    beside = beside.moved(lambda slot: data.moved(slot, output))
    return replace(beside, products=beside.products + 1)


def summed_product(call: Call, operand: Operand, axes: Sequence[int]) -> list[Slot] | None:
    """``(one * other).sum(axes)``, which is a contraction of the two: scores, or an attention.

    None where it is neither: weights of tokens without rows that sum them up are a pooling.
    """
    factors = call.ledger.factors.get(operand.node.name) if operand.node is not None else None
    if factors is None:
        return None
    letters = letters_for(operand.ndim)
    output = "".join(c for axis, c in enumerate(letters) if axis not in axes)
    summed = "".join(c for c in letters if c not in output)
    factors = unexpanded(call, *factors), unexpanded(call, *factors[::-1])
    one, other = (Side(factor, letters[operand.ndim - factor.ndim :], summed) for factor in factors)
    one, other = _raw_values(call, one, other), _raw_values(call, other, one)
    if one.killed and other.killed:
        if None in _weights_and_values(call, one, other, output):
            return None
    elif one.killed or other.killed:
        weights = other if one.killed else one
        if not (weights.alive and weights.operand.value.softmaxes):
            return None
    elif not (one.alive and other.alive):
        return None
    value = contract(call, one.operand, other.operand, f"{one.letters},{other.letters}->{output}")
    return [_unsqueezed(slot, output, letters) for slot in value.slots]


def _unsqueezed(slot: Slot, present: str, letters: str) -> Slot:
    sizes = [slot.labels.shape[present.index(c)] if c in present else 1 for c in letters]
    return replace(slot, labels=slot.labels.reshape(sizes))
