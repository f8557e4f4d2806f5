"""Maps a block at a time: how they are cut, so that blocks of A and ∇A are rebuilt as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

MOST = 1 << 19
"""Elements of a map that are held at a time, if a block can be cut so small."""

Where = tuple[slice, ...]
"""A slice for each axis of a map."""


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a map A and of its gradient ∇A, in float32 or better."""

    where: Where
    maps: Tensor
    gradients: Iterable[Tensor | None]
    """One for each score; each is formed when it is asked for, once."""
    own_maps: Sequence[Tensor] = ()
    """One for each score, where what stands for the map is another for each."""

    def pairs(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The map and its gradient, for each score."""
        for place, gradient in enumerate(self.gradients):
            yield (self.own_maps[place] if self.own_maps else self.maps), gradient


def cuts(
    shape: Sequence[int],
    whole: Sequence[int],
    most: int | None,
    live: Mapping[int, range],
    grains: Mapping[int, int] | None = None,
) -> Iterator[Where]:
    """Cut an array of that shape into blocks, along its first axes first, never along those in ``whole``.

    ``most``: how many elements a block may have; None: :data:`MOST`.
    ``grains``: by axis, what the size of its pieces must be a multiple of.

    Example:
        >>> [[s.start for s in where[:2]] for where in cuts((2, 4, 8), [2], 16, {})]
        [[0, 0], [0, 2], [1, 0], [1, 2]]
    """
    most = MOST if most is None else most
    spans = [live.get(axis, range(size)) for axis, size in enumerate(shape)]
    count = torch.Size([len(span) for span in spans]).numel()
    pieces = []
    for axis, span in enumerate(spans):
        step = max(len(span), 1)
        if count > most and axis not in whole and step > 1:
            grain = (grains or {}).get(axis, 1)
            rest = count // step
            step = min(step, max(most // rest // grain, 1) * grain)
            count = rest * step
        pieces.append([slice(at, min(at + step, span.stop)) for at in range(span.start, span.stop, step)])
    yield from product(*pieces)
