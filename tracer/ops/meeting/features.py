"""Features of several tokens: side by side at one place, or of every pair of tokens along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fxplain.labels.call import Call
from fxplain.labels.labels import STRONG, Slot, align, codes_of, compact
from fxplain.labels.value import Coarser, Operand
from fxplain.ops.meeting.mixing import new_tokens, pooled_along, record
from fxplain.ops.meeting.sides import Side

MOST_PIECES = 8
"""Of more runs along an axis than these, no features are told apart."""


def pieces(slot: Slot, axis: int) -> list[Slot]:
    """The slot at each run of equal labels along an axis; none where there are too many runs, or one."""
    labels = slot.labels
    if not slot.varies(axis):
        return []
    change = (
        labels.narrow(axis, 1, labels.shape[axis] - 1) != labels.narrow(axis, 0, labels.shape[axis] - 1)
    ).any([other for other in range(labels.ndim) if other != axis])
    starts = [0, *(change.nonzero().reshape(-1) + 1).tolist()]
    if not 1 < len(starts) <= MOST_PIECES:
        return []
    return [replace(slot, labels=compact(labels.narrow(axis, start, 1))) for start in starts]


def _distinct(slots: Sequence[Slot]) -> list[Slot]:
    found: list[Slot] = []
    for slot in slots:
        if not any(torch.equal(slot.labels, old.labels) for old in found):
            found.append(slot)
    return found


def crossed(slot: Slot, axis: int) -> list[Slot]:
    """The tokens whose features lie side by side along an axis, where they lie along axes of their own: every
    query's beside every key's. None where they do not."""
    found = _distinct(pieces(slot, axis))
    alone = [one for one in found if not any(one is not two and _covers(two, one) for two in found)]
    return alone if len(alone) > 1 else []


def _covers(one: Slot, other: Slot) -> bool:
    return other.token_axes <= one.token_axes


def pair(one: Slot, other: Slot) -> bool:
    """Whether two slots' tokens meet in all pairs along one axis, each pair once."""
    axes = one.token_axes
    if one.strength != STRONG or other.strength != STRONG or len(axes) != 1 or other.token_axes != axes:
        return False
    (axis,) = axes
    size = one.labels.shape[axis]
    lines = [
        codes_of(slot.labels).movedim(axis, -1).reshape(-1, slot.labels.shape[axis])[0]
        for slot in (one, other)
    ]
    counts = [len(torch.unique(line)) for line in lines]
    if min(counts) < 2 or counts[0] * counts[1] != size:
        return False
    return len(torch.unique(torch.stack(lines, -1), dim=0)) == size


def pair_of_features(data: Side) -> Coarser | None:
    """The two tokens of each pair, whose features a linear map sums up, if all pairs lie along one axis."""
    if data.kept or len(data.summed_out) != 1:
        return None
    axes = [data.letters.index(letter) for letter in data.over(data.summed_out[0])]
    found = _distinct(pieces(data.summed_out[0], axes[0])) if len(axes) == 1 else []
    return Coarser(found[1], main=found[0]) if len(found) == 2 and pair(*found) else None


def pair_among(given: Sequence[Sequence[Slot]], ndim: int) -> Coarser | None:
    """The two tokens of each pair that meet in a pointwise operation, if all pairs lie along one axis."""
    firm = [[align(slot, ndim) for slot in slots if slot.strength == STRONG] for slots in given]
    if len(firm) != 2 or len(firm[0]) != 1 or len(firm[1]) != 1 or not pair(firm[0][0], firm[1][0]):
        return None
    return Coarser(firm[1][0], main=firm[0][0])


def laid_apart(coarser: Coarser | None) -> list[Slot]:
    """Rows and columns, once the pairs that lay along one axis lie along two."""
    if coarser is None or coarser.main is None:
        return []
    sides = [coarser.main, coarser.slot]
    return sides if not (_covers(*sides) or _covers(*sides[::-1])) else []


def one_token_a_place(call: Call, operand: Operand) -> Operand:
    """The operand, where features of several inputs lie side by side at each place and no linear map has
    mixed them: each place is a token that is made of theirs."""
    slots = operand.value.active
    if len(slots) != 1 or slots[0].strength < STRONG or operand.value.softmaxes:
        return operand
    slot = slots[0]
    if any(size > 1 and not slot.varies(axis) for axis, size in enumerate(operand.shape)):
        return operand
    for axis in range(operand.ndim):
        if slot.token_axes - {axis} and _of_several(call, pieces(slot, axis), operand.shape[axis]):
            return operand.with_slots([_made_of(call, operand, slot, axis)])
    return operand


def _of_several(call: Call, found: Sequence[Slot], size: int) -> bool:
    """Whether these are wide pieces, of different inputs or with tokens in common at different places."""
    if not found or 2 * len(found) > size:
        return False
    tokens = [torch.unique(codes_of(piece.labels)) for piece in found]
    tokens = [own[own >= 0] for own in tokens]
    if any(len(own) < 2 for own in tokens):
        return False
    several = len({call.ledger.tokens.source_of(int(own[0])) for own in tokens}) > 1
    return several or len(torch.unique(torch.cat(tokens))) < sum(map(len, tokens))


def _made_of(call: Call, operand: Operand, slot: Slot, axis: int) -> Slot:
    """New tokens, the same however the tensor is laid out: numbered as if the features were last."""
    order = [other for other in range(operand.ndim) if other != axis] + [axis]
    back = [order.index(place) for place in range(operand.ndim)]
    old = replace(slot, labels=slot.labels.permute(order))
    shape = [operand.shape[place] for place in order[:-1]] + [1]
    rows = new_tokens(call, old, sorted(old.axes - {operand.ndim - 1}), shape)
    rows = replace(rows, labels=rows.labels.permute(back))
    return record(call, operand, rows, slot)


def features_pooled(call: Call, operand: Operand, axis: int) -> Operand:
    """The operand with one token a place, where features of several tokens lie along an axis."""
    slots = operand.value.active
    if not slots or any(not slot.varies(axis) for slot in slots):
        return operand
    return operand.with_slots(pooled_along(call, operand, [axis]))


def values_of_others(call: Call, values: Operand, keys: Slot, theirs: Slot) -> frozenset[int]:
    """The step by which tokens that are asked as keys take in those of another input that lie at their places
    as values: answers that are weighed by the likeness of questions. None where both are of one input."""
    tokens = [torch.unique(codes_of(slot.labels)) for slot in (keys, theirs)]
    firm = all(slot.strength == STRONG and slot.token_axes for slot in (keys, theirs))
    if not firm or keys.token_axes != theirs.token_axes or any(int(own.min()) < 0 for own in tokens):
        return frozenset()
    ends = [(int(own.min()), int(own.max())) for own in tokens]
    sources = [{call.ledger.tokens.source_of(token) for token in both} for both in ends]
    if sources[0] & sources[1]:
        return frozenset()
    made = record(call, values, replace(keys, reads=frozenset()), theirs, adds=True)
    return made.reads
