"""The operands of a sum of products, with a letter for each axis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.labels.labels import STRONG, Slot, broadcast, codes_of, same_tokens
from fxplain.labels.operand import Operand


def letters_for(count: int, skip: str = "") -> str:
    return "".join([letter for letter in ascii_letters if letter not in skip][:count])


@dataclass(frozen=True)
class Side:
    """One operand of a contraction with the letters of its axes, and its slots sorted by what the sum
    does."""

    operand: Operand
    letters: str
    summed: str

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.operand.value.active

    def over(self, slot: Slot) -> str:
        """The summed letters along which a slot varies."""
        return "".join(
            letter for axis, letter in enumerate(self.letters) if letter in self.summed and slot.varies(axis)
        )

    @property
    def killed(self) -> list[Slot]:
        return [slot for slot in self.slots if self.over(slot)]

    @property
    def alive(self) -> list[Slot]:
        return [slot for slot in self.slots if not self.over(slot)]

    def axes_of(self, letters: str) -> list[int]:
        return [axis for axis, letter in enumerate(self.letters) if letter in letters]

    def moved(self, slot: Slot, target: str) -> Slot:
        """The slot with its axes in the order of ``target``; letters it lacks get size 1."""
        return replace(slot, labels=moved(slot.labels, self.letters, target))


def sizes_of(*sides: Side) -> dict[str, int]:
    """The size of the axis of each letter, the larger where one is broadcast."""
    sizes: dict[str, int] = {}
    for side in sides:
        for letter, size in zip(side.letters, side.operand.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return sizes


def moved(labels: Tensor, letters: str, target: str) -> Tensor:
    drop = [axis for axis, letter in enumerate(letters) if letter not in target]
    for axis in drop:
        labels = labels.narrow(axis, 0, min(1, labels.shape[axis]))
    present = [letter for letter in letters if letter in target]
    labels = labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in drop])
    order = [present.index(letter) for letter in target if letter in present]
    labels = labels.permute(order)
    return labels.reshape(
        [labels.shape[[t for t in target if t in present].index(c)] if c in present else 1 for c in target]
    )


def run_on(node: fx.Node, operand: Any) -> Any:
    """What an operation with one operand gives on another one."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: operand)
    return node.target(*args, **kwargs)  # type: ignore[operator]


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
    alone = [slot for slot in weights.slots if _lies_on(slot, weights, values)]
    if len(weights.slots) == 2 and alone:
        rows = [slot for slot in weights.slots if slot is not alone[-1]]
        return replace(weights, operand=weights.operand.with_slots([*rows, alone[-1]]))
    return weights if weights.operand.value.softmaxes else None


def _lies_on(slot: Slot, weights: Side, values: Side) -> bool:
    """Whether a slot of weights names, window by window, the very tokens that the values are of."""
    if any(weights.letters[axis] not in values.letters for axis in slot.token_axes):
        return False
    ours = codes_of(moved(slot.labels, weights.letters, values.letters))
    return torch.equal(*broadcast(ours, codes_of(values.slots[0].labels)))
