"""What a target may be beside an index, and where on a picture it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Region(tuple[int, ...]):
    """Several places of one sample's output, of which the score is the mean: the class, then the places.

    As a tuple it is the index of the class alone; ``mask`` is true at the places.
    """

    mask: Tensor

    def __new__(cls, label: int, mask: Tensor) -> Region:
        made = super().__new__(cls, (label,))
        made.mask = mask
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Region, (self[0], self.mask)


def score_at(scores: Tensor, index: Sequence[int]) -> Tensor:
    """One sample's score: the element at an index, or the mean over a region."""
    if isinstance(index, Region):
        return scores[index[0]][index.mask.to(scores.device)].mean()
    return scores[tuple(index)]


class Wish:
    """A target that is no index: what it asks for is looked up in each sample's output."""


class Largest(Wish):
    """Asks for the largest element of each sample's output, whatever the output is for."""

    def __repr__(self) -> str:
        return "LARGEST"


LARGEST = Largest()


@dataclass(frozen=True)
class Point(Wish):
    """Asks for what a segmentation says at one point: its class, over the places around it that have it.

    Args:
        across: part of the picture's width, from its left edge, 0 to 1.
        down: part of its height, from the top.
    """

    across: float
    down: float


def joined(same: Tensor, row: int, column: int) -> Tensor:
    """[row, column]: the true places that a true place is joined to, side by side.

    Example:
        >>> joined(torch.tensor([[True, True, False, True]]), 0, 0)
        tensor([[ True,  True, False, False]])
    """
    found = torch.zeros_like(same)
    found[row, column] = True
    while True:
        grown = found.clone()
        grown[1:] |= found[:-1]
        grown[:-1] |= found[1:]
        grown[:, 1:] |= found[:, :-1]
        grown[:, :-1] |= found[:, 1:]
        grown &= same
        if bool((grown == found).all()):
            return found
        found = grown


def corners(box: Tensor, form: str) -> tuple[float, ...]:
    """Left, top, right and bottom of a box, as parts of the picture's sides; empty if it has other numbers.

    Example:
        >>> corners(torch.tensor([0.5, 0.5, 0.5, 1.0]), "centre")
        (0.25, 0.0, 0.75, 1.0)
    """
    if box.shape != (4,):
        return ()
    first, second, third, fourth = (float(edge) for edge in box)
    if form == "corners":
        return (first, second, third, fourth)
    return (first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2)
