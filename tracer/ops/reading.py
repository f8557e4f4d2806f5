"""Readings: what an operand's elements are to the places of a result.

Each operation reads its operands: under every place of the result lie the elements that it is made of, laid
out ``[*axes of the result, *summed axes]``. One law holds for all operations: **a labelling survives if and
only if it is constant along the summed axes.** An operation that only moves elements sums over none: it is
run on the labels themselves (:mod:`fxplain.ops.movement`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from string import ascii_letters

from torch import Tensor

from fxplain.labels.labels import Slot


@dataclass(frozen=True)
class Reading:
    """How the axes of an operand lie under those of a result.

    Args:
        places: for each axis of the result, the operand's axis that lies there; None where none does. Axes
            of the operand that are not among them are summed over.

    Example:
        Rows of a table [row, column], summed over columns and over rows:

        >>> import torch
        >>> from fxplain.labels.labels import STRONG
        >>> rows = Slot(torch.tensor([[5], [6]]), STRONG)
        >>> [slot.labels.tolist() for slot in reduced(2, [1]).survivors([rows])]
        [[5, 6]]
        >>> reduced(2, [0]).survivors([rows])
        []
    """

    places: tuple[int | None, ...]

    def over(self, slot: Slot) -> list[int]:
        """The summed axes along which a labelling varies: none where it survives."""
        return [axis for axis in range(slot.labels.ndim) if axis not in self.places and slot.varies(axis)]

    def survivors(self, slots: Iterable[Slot]) -> list[Slot]:
        """The labellings that survive, laid out as the result."""
        return [self.first(slot) for slot in slots if not self.over(slot)]

    def first(self, slot: Slot) -> Slot:
        """The labels at the first place along the summed axes, laid out as the result."""
        return replace(slot, labels=self.lay(slot.labels))

    def lay(self, labels: Tensor) -> Tensor:
        """The first of a tensor's entries along the summed axes, laid out as the result."""
        own = [axis for axis in self.places if axis is not None]
        for axis in range(labels.ndim):
            if axis not in own:
                labels = labels.narrow(axis, 0, min(1, labels.shape[axis]))
        sizes = [1 if axis is None else labels.shape[axis] for axis in self.places]
        gone = [axis for axis in range(labels.ndim) if axis not in own]
        return labels.permute(*own, *gone).reshape(sizes)


def reduced(ndim: int, axes: Iterable[int], keep: bool = False) -> Reading:
    """The reading of a sum over some axes, which are gone, or kept at size 1."""
    gone = {*axes}
    return Reading(tuple(None if axis in gone else axis for axis in range(ndim) if keep or axis not in gone))


def lettered(letters: str, output: str) -> Reading:
    """The reading of an operand of an einsum, with a letter for each axis.

    >>> lettered("bqk", "bkq").places, lettered("bq", "qk").places
    ((0, 2, 1), (1, None))
    """
    return Reading(tuple(letters.index(c) if c in letters else None for c in output))


def letters_for(count: int, skip: str = "") -> str:
    """So many letters for axes, others than those to skip."""
    return "".join([letter for letter in ascii_letters if letter not in skip][:count])


def moved(labels: Tensor, letters: str, target: str) -> Tensor:
    """Labels with their axes in the order of ``target``; letters that they lack get size 1."""
    return lettered(letters, target).lay(labels)
