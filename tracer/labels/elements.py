"""Numbers for the elements of inputs and parameters: the codes of dormant labels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxplain.labels.labels import compact


@dataclass(frozen=True)
class Root:
    """An input, a parameter or a constant whose elements have numbers, and how firmly they name tokens."""

    name: str
    is_input: bool
    strength: int
    is_constant: bool = False
    """Whether the graph makes it out of nothing: the name is that of a node, or of the input it fills."""


@dataclass
class Elements:
    """Numbers the elements of all inputs and parameters, for dormant labels."""

    ranges: list[tuple[Root, int, int]] = field(default_factory=list)
    """(root, first code, one past the last)."""
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """First code -> the shape that is numbered."""
    cuts: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """First code of an input -> ways in which it was cut: the elements of each token, and who names them."""
    known: dict[object, int] = field(default_factory=dict)
    """What was numbered once and for all -> its first code."""

    def reserve(self, root: Root, shape: Sequence[int], memo: object = None) -> int:
        """The first of new numbers for elements of this shape; the same ones again for the same ``memo``."""
        if memo is not None and memo in self.known:
            return self.known[memo]
        start = self.ranges[-1][2] if self.ranges else 0
        self.ranges.append((root, start, start + torch.Size(shape).numel()))
        self.shapes[start] = tuple(shape)
        if memo is not None:
            self.known[memo] = start
        return start

    def cut(self, elements: Tensor, firsts: Tensor) -> int:
        """Which way of cutting an input into tokens this is, counted from 0.

        It is another one than those before where tokens of the one hold several tokens of the other.

        Args:
            elements: [token, element] codes of all elements of each token.
            firsts: [token] the code that names each.
        """
        cuts = self.cuts.setdefault(self.around(int(firsts.max()))[0], [])
        for number, (known, names) in enumerate(cuts):
            holds = torch.isin(elements, names), torch.isin(known, firsts)
            if torch.equal(known, elements) or not any(bool((each.sum(1) > 1).any()) for each in holds):
                return number
        cuts.append((elements, firsts))
        return len(cuts) - 1

    def around(self, code: int) -> tuple[int, tuple[int, ...]]:
        """The first code, and the shape, of the input or parameter that an element belongs to."""
        start = next(start for _, start, stop in self.ranges if start <= code < stop)
        return start, self.shapes[start]

    def without_features(self, codes: Tensor, features: Collection[int]) -> Tensor:
        """The codes with coordinate 0 along every axis of their root that only features go along.

        So parts of the features of one place, split before they become tokens, are of one token. Left as they
        are where no axis but features remains.
        """
        inside = [start for _, start, stop in self.ranges if bool(((codes >= start) & (codes < stop)).any())]
        if len(inside) != 1 or bool((codes < 0).any()):
            return codes
        places = torch.unravel_index(codes - inside[0], self.shapes[inside[0]])
        along = [{axis for axis, size in enumerate(compact(p).shape) if size > 1} for p in places]
        if not any(axes - set(features) for axes in along):
            return codes
        kept = [
            torch.zeros_like(p) if axes and axes <= set(features) else p
            for p, axes in zip(places, along, strict=True)
        ]
        result = torch.zeros_like(codes)
        for place, size in zip(kept, self.shapes[inside[0]], strict=True):
            result = result * size + place
        return result + inside[0]

    def lie(self, codes: Tensor) -> tuple[int, ...]:
        """How these elements of one root lie in it: the places along its axes, if they are all of a grid."""
        start = next((start for _, start, stop in self.ranges if start <= int(codes[0]) < stop), None)
        if start is None or int(codes.max()) - start >= torch.Size(self.shapes[start]).numel():
            return (len(codes),)
        places = torch.unravel_index(codes - start, self.shapes[start])
        sizes = [size for size in (len(torch.unique(place)) for place in places) if size > 1]
        return tuple(sizes) if sizes and torch.Size(sizes).numel() == len(codes) else (len(codes),)

    def by_root(self, codes: Tensor) -> dict[Root, Tensor]:
        """Which of these codes belong to which root, as masks."""
        known = codes[codes >= 0]
        if not known.numel():
            return {}
        first, last = (bisect_right(self.ranges, int(end), key=lambda own: own[2]) for end in known.aminmax())
        if first == last:
            return {self.ranges[first][0]: codes >= 0} if first < len(self.ranges) else {}
        owners = torch.bucketize(
            codes, torch.tensor([stop for _, _, stop in self.ranges], dtype=torch.int64), right=True
        )
        found: dict[Root, Tensor] = {}
        for owner in torch.unique(owners[codes >= 0]).tolist():
            if owner < len(self.ranges):  # codes beyond are no elements
                root, inside = self.ranges[owner][0], (owners == owner) & (codes >= 0)
                found[root] = found[root] | inside if root in found else inside
        return found
