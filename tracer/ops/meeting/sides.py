"""The two operands of a sum of products, and what can be told of them before it is known what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fxplain.labels.labels import STRONG, Slot, broadcast, codes_of, same_tokens
from fxplain.labels.value import Operand, PartialSum
from fxplain.ops.reading import Reading, lettered, moved


@dataclass(frozen=True)
class Side:
    """One operand, with a letter for each of its axes and of the product's."""

    operand: Operand
    letters: str
    output: str

    @property
    def summed(self) -> str:
        """The letters that the product sums over."""
        return "".join(letter for letter in self.letters if letter not in self.output)

    @property
    def reading(self) -> Reading:
        return lettered(self.letters, self.output)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.operand.value.active

    @property
    def summed_out(self) -> list[Slot]:
        """The labellings that vary along what is summed."""
        return [slot for slot in self.slots if self.reading.over(slot)]

    @property
    def kept(self) -> list[Slot]:
        """The labellings that survive, laid out as the operand."""
        return [slot for slot in self.slots if not self.reading.over(slot)]

    @property
    def survivors(self) -> list[Slot]:
        """The labellings that survive, laid out as the product."""
        return self.reading.survivors(self.slots)

    def over(self, slot: Slot) -> str:
        """The summed letters along which a labelling varies."""
        return "".join(self.letters[axis] for axis in self.reading.over(slot))

    def axes_of(self, letters: str) -> list[int]:
        return [axis for axis, letter in enumerate(self.letters) if letter in letters]

    def laid(self, slot: Slot) -> Slot:
        """A labelling of the operand, or its first place along what is summed, laid out as the product."""
        return self.reading.first(slot)

    def with_slots(self, slots: Sequence[Slot]) -> Side:
        return replace(self, operand=self.operand.with_slots(slots))


@dataclass(frozen=True)
class Met:
    """What comes of two operands that meet."""

    slots: Sequence[Slot]
    partial: PartialSum | None = None
    """How far an attention is put together, where its output may be divided or added to others later."""
    shared_map: bool = False
    """Whether scores were summed over the rows of a grid."""


def sizes_of(*sides: Side) -> dict[str, int]:
    """The size of the axis of each letter, the larger where one is broadcast."""
    sizes: dict[str, int] = {}
    for side in sides:
        for letter, size in zip(side.letters, side.operand.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return sizes


def free(weights: Side, values: Side) -> list[int]:
    """Axes of the weights that hold several maps over the same values: learned scores, no heads."""
    sizes = sizes_of(values)
    return [
        axis
        for axis, letter in enumerate(weights.letters)
        if letter not in weights.summed and weights.operand.shape[axis] > 1 and sizes.get(letter, 1) == 1
    ]


def rows_tell_weights(weights: Side) -> bool:
    """Whether each of several rows tells weights for places by itself, without having met a key."""
    strong = [slot for slot in weights.kept if slot.strength == STRONG and slot.token_axes]
    return bool(strong) and weights.operand.value.from_input


def leaves_features(left: Side, right: Side, output: str) -> bool:
    """Whether the result has an axis of features, of one side alone, along which no token lies."""
    for letter in output:
        sides = [side for side in (left, right) if letter in side.letters]
        wide = [side for side in sides if sizes_of(side)[letter] > 1]
        alone = len(wide) == 1 and (len(sides) == 1 or letter == left.output[-1])
        if alone and not any(slot.varies(wide[0].letters.index(letter)) for slot in wide[0].slots):
            return True
    return False


def reads_state(left: Side, right: Side) -> bool:
    """Whether what leaves features are a state's, and not several heads of a query with keys of its own."""
    summaries = left.operand.value.hidden.summaries | right.operand.value.hidden.summaries
    return bool(summaries) or leaves_features(left, right, left.output[-1])


def nested(one: Slot, other: Slot) -> bool:
    """Whether tokens of the one lie along all axes of the other, and more."""
    axes = one.token_axes, other.token_axes
    return all(axes) and (axes[0] < axes[1] or axes[1] < axes[0])


def same_single(one: Slot, other: Slot) -> bool:
    return not (one.token_axes or other.token_axes) and same_tokens(one, other)


def has_both_sides(left: Side, right: Side) -> bool:
    """True for queries times keys: an axis for the rows and one for the columns, be they of size 1."""
    ours, theirs = (set(side.letters) & set(side.output) for side in (left, right))
    return bool(ours - theirs) and bool(theirs - ours)


def is_map(side: Side, other: Side) -> bool:
    """True for softmaxed weights with rows or columns of their own beside the summed ones."""
    own = [axis for axis, letter in enumerate(side.letters) if letter not in other.letters]
    tokens = bool(own) and all(any(slot.varies(axis) for slot in side.kept) for axis in own)
    return tokens and bool(side.operand.value.softmaxes)


def has_columns(values: Side, weights: Side) -> bool:
    """True for values that are a map themselves: tokens of their own lie along an axis that the weights
    lack."""
    sizes = sizes_of(weights)
    own = {axis for axis, letter in enumerate(values.letters) if sizes.get(letter, 1) == 1}
    return any(slot.token_axes & own for slot in values.kept)


def weighs_one(weights: Side, values: Side) -> Side | None:
    """The weights of a single key, their row first and the key last, where nothing varies along the summed
    axis to tell: softmaxed ones, or those of the very token that the value is of. None if they are none."""
    sizes = sizes_of(weights)
    single = bool(weights.summed) and all(sizes[letter] == 1 for letter in weights.summed)
    if not single or len(weights.slots) < 2 or not values.slots:
        return None
    alone = [slot for slot in weights.slots if _lies_on(slot, weights, values)]
    if len(weights.slots) == 2 and alone:
        rows = [slot for slot in weights.slots if slot is not alone[-1]]
        return weights.with_slots([*rows, alone[-1]])
    return weights if weights.operand.value.softmaxes else None


def _lies_on(slot: Slot, weights: Side, values: Side) -> bool:
    """Whether a slot of weights names, window by window, the very tokens that the values are of."""
    if any(weights.letters[axis] not in values.letters for axis in slot.token_axes):
        return False
    ours = codes_of(moved(slot.labels, weights.letters, values.letters))
    return torch.equal(*broadcast(ours, codes_of(values.slots[0].labels)))
