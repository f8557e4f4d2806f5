"""What the two sides of a product are to each other, told by where the labels of each vary."""

from __future__ import annotations

from dataclasses import replace

from fxplain.labels import STRONG, Slot, same_tokens
from fxplain.ops.sides import Side, sizes_of


def told_by_rows(weights: Side) -> bool:
    """Whether each of several rows tells weights for places by itself, without having met a key."""
    strong = [slot for slot in weights.alive if slot.strength == STRONG and slot.token_axes]
    return bool(strong) and weights.operand.value.from_input


def leaves_features(left: Side, right: Side, output: str) -> bool:
    """Whether the result has an axis of features, of one side alone, along which no token lies."""
    for letter in output:
        sides = [side for side in (left, right) if letter in side.letters]
        wide = [side for side in sides if sizes_of(side)[letter] > 1]
        alone = len(wide) == 1 and (len(sides) == 1 or letter == output[-1])
        if alone and not any(slot.varies(wide[0].letters.index(letter)) for slot in wide[0].slots):
            return True
    return False


def reads_state(left: Side, right: Side, output: str) -> bool:
    """Whether what leaves features are a state's, and not several heads of a query with keys of its own."""
    summed = left.operand.value.summed | right.operand.value.summed
    return bool(summed) or leaves_features(left, right, output[-1])


def nested(one: Slot, other: Slot) -> bool:
    """Whether tokens of the one lie along all axes of the other, and more."""
    axes = one.token_axes, other.token_axes
    return all(axes) and (axes[0] < axes[1] or axes[1] < axes[0])


def same_single(one: Slot, other: Slot) -> bool:
    return not (one.token_axes or other.token_axes) and same_tokens(one, other)


def has_both_sides(left: Side, right: Side) -> bool:
    """True for queries times keys: an axis for the rows and one for the columns, be they of size 1."""
    ours, theirs = set(left.letters) - set(left.summed), set(right.letters) - set(right.summed)
    return bool(ours - theirs) and bool(theirs - ours)


def is_map(side: Side, other: Side) -> bool:
    """True for softmaxed weights with rows or columns of their own beside the summed ones."""
    free = [axis for axis, letter in enumerate(side.letters) if letter not in other.letters]
    own = bool(free) and all(any(slot.varies(axis) for slot in side.alive) for axis in free)
    return own and bool(side.operand.value.softmaxes)


def has_columns(values: Side, weights: Side) -> bool:
    """True for values that are a map themselves: tokens of their own lie along an axis that the weights
    lack."""
    sizes = sizes_of(weights)
    own = {axis for axis, letter in enumerate(values.letters) if sizes.get(letter, 1) == 1}
    return any(slot.token_axes & own for slot in values.alive)


def weighs_one(weights: Side, values: Side) -> Side | None:
    """The weights of a single key, their row first and the key last, where nothing varies along the summed
    axis to tell: softmaxed ones, or those of the very token that the value is of. None if they are none."""
    sizes = sizes_of(weights)
    single = bool(weights.summed) and all(sizes[letter] == 1 for letter in weights.summed)
    if not single or len(weights.slots) < 2 or not values.slots:
        return None
    alone = [slot for slot in weights.slots if not slot.token_axes and same_tokens(slot, values.slots[0])]
    if len(weights.slots) == 2 and alone and not values.slots[0].token_axes:
        rows = [slot for slot in weights.slots if slot is not alone[-1]]
        return replace(weights, operand=weights.operand.with_slots([*rows, alone[-1]]))
    return weights if weights.operand.value.softmaxes else None
