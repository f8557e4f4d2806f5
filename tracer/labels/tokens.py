"""Tokens as they are born: what makes them of elements, or of other tokens, and which they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, fx

from fxplain.labels.elements import Elements, Root
from fxplain.labels.flows import Born
from fxplain.labels.labels import FAINT, STRONG, Slot, broadcast, codes_of, compact, encode, samples_of


@dataclass
class Tokens:
    """All tokens of one labelling run, and the elements that they come from."""

    elements: Elements = field(default_factory=Elements)
    spaces: list[Born] = field(default_factory=list)
    copies: dict[tuple[int, int], int] = field(default_factory=dict)
    """(token, which copy of it in a sequence) -> the token that the copy is."""
    repeated: set[int] = field(default_factory=set)
    """Tokens that stand at several places of one sequence with another content at each."""
    shared_rows: set[int] = field(default_factory=set)
    """Tokens that several rows of a map are of, along an axis that the values lack: copies, or heads."""
    _of_elements: dict[tuple[str, int], int] = field(default_factory=dict)
    _at_places: dict[tuple[object, ...], int] = field(default_factory=dict)

    def elements_of(self, tokens: Collection[int]) -> list[int]:
        """The element codes that became these tokens."""
        return [code for (_, code), token in self._of_elements.items() if token in tokens]

    @property
    def count(self) -> int:
        """How many there are so far."""
        return self.spaces[-1].start + self.spaces[-1].size if self.spaces else 0

    def new_tokens(self, count: int, **facts: object) -> int:
        start = self.count
        self.spaces.append(Born(start=start, size=count, **facts))  # type: ignore[arg-type]
        return start

    def is_raw(self, slot: Slot | None) -> bool:
        """Whether dormant labels number elements of an input (not of a parameter that scales features)."""
        return slot is not None and any(
            root.is_input for root in self.elements.by_root(codes_of(slot.labels))
        )

    def space_of(self, token: int) -> Born:
        """The space that a token was born in."""
        return next(s for s in reversed(self.spaces) if s.start <= token)

    def source_of(self, token: int) -> str:
        """The input or parameter that a token comes from."""
        return self.space_of(token).source

    def mixed_at(self, slot: Slot) -> int:
        """When a slot's tokens were made by a mixing: a number that grows with time, 0 if they were not."""
        codes = codes_of(slot.labels)
        newest = int(codes.max()) if codes.numel() else -1
        return next(
            (s.start for s in self.spaces if s.start <= newest < s.start + s.size and s.origin == "mixing"), 0
        )

    def of_elements(self, slot: Slot, node: fx.Node, tag: str = "", table: str | None = None) -> Slot:
        """Turn element codes into tokens: equal codes (under one tag) are the same token everywhere.

        Tokens of constants come from ``table``, the parameter that they are looked up in, if there is one.
        """
        codes = codes_of(slot.labels)
        present = torch.unique(codes[codes >= 0])
        strength = FAINT
        tokens = torch.full_like(present, -1)
        for root, inside in self.elements.by_root(present).items():
            looked_up = table and root.is_constant and not root.is_input
            own = replace(root, name=str(table)) if looked_up else root
            tokens[inside] = self._numbered(present[inside], slot, node, tag, own)
            strength = max(strength, STRONG if root.is_input and tag else root.strength)
        places = torch.searchsorted(present, codes.clamp_min(0)).clamp_max(max(len(present) - 1, 0))
        named = torch.where(codes >= 0, tokens[places], -1) if len(present) else codes
        return Slot(compact(encode(samples_of(slot.labels), named)), strength, slot.reads)

    def _numbered(self, codes: Tensor, slot: Slot, node: fx.Node, tag: str, root: Root) -> Tensor:
        keys = [(tag, int(code)) for code in codes.tolist()]
        fresh = [key for key in keys if key not in self._of_elements]
        if fresh:
            grid = grid_of(slot, len(fresh))
            # tokens are in the order of their elements: patches in a row still lie on the picture's grid
            lie = self.elements.lie(torch.tensor([code for _, code in fresh])) if len(grid) == 1 else grid
            start = self.new_tokens(
                len(fresh),
                grid=lie,
                origin="input" if root.is_input else "parameter",
                source=root.name,
                node=node,
                filled=root.is_input and root.is_constant,
            )
            self._of_elements.update({key: start + place for place, key in enumerate(fresh)})
        return torch.tensor([self._of_elements[key] for key in keys], dtype=torch.int64)

    def at_places(
        self,
        labels: Slot,
        node: fx.Node,
        source: str,
        origin: Literal["input", "mixing"],
        memo: object,
        old: Slot | None = None,
    ) -> Slot:
        """New tokens, one for each place of ``labels`` (whose codes number the places within a sample).

        They lie on a grid as the tokens do that they are made of: of ``old``, one at each place.
        """
        key = (memo, tuple(labels.labels.shape))
        codes = codes_of(labels.labels)
        if key not in self._at_places:
            count = int(codes.max()) + 1 if codes.numel() else 0
            grid = grid_of(labels, count)
            finer = grid if old is None else self._lie(codes, codes_of(old.labels), count)
            grid = max(grid, finer, key=len)
            self._at_places[key] = self.new_tokens(count, grid=grid, origin=origin, source=source, node=node)
        # the tokens are the same every time, their sample may be another: one after the other, in a loop
        tokens = torch.where(codes >= 0, codes + self._at_places[key], -1)
        return replace(labels, labels=encode(samples_of(labels.labels), tokens))

    def _lie(self, new: Tensor, old: Tensor, count: int) -> tuple[int, ...]:
        """The grid of new tokens, told by the places of old ones on theirs; none where they are on no grid.

        Args:
            new: the number of each new token, laid out.
            old: the code of a token that it is made of, laid out so too.
            count: how many new tokens there are.
        """
        first = torch.full((count,), -1, dtype=torch.int64)
        new, old = broadcast(new, old)
        known = (new >= 0) & (old >= 0)
        first[new[known].flip(0)] = old[known].flip(0)  # the first of each is written last
        if not count or bool((first < 0).any()):
            return ()
        space = self.space_of(int(first[0]))
        if int(first.min()) < space.start or int(first.max()) >= space.start + space.size:
            return ()
        lines = [
            torch.unique(line, return_inverse=True)
            for line in torch.unravel_index(first - space.start, space.grid)
        ]
        sizes = tuple(len(known) for known, _ in lines)
        if torch.Size(sizes).numel() != count:
            return ()
        order = torch.zeros_like(first)
        for size, (_, rank) in zip(sizes, lines, strict=True):
            order = order * size + rank
        return tuple(size for size in sizes if size > 1) if torch.equal(order, torch.arange(count)) else ()


def grid_of(slot: Slot, count: int) -> tuple[int, ...]:
    """The shape of the axes that number the tokens, if they make up exactly ``count`` places."""
    codes = compact(codes_of(slot.labels))
    grid = tuple(_distinct(codes, axis) for axis, size in enumerate(codes.shape) if size > 1)
    product = 1
    for size in grid:
        product *= size
    return grid if grid and product == count else (count,)


def _distinct(codes: Tensor, axis: int) -> int:
    """How many different tokens stand along one axis; frames of several samples may be folded into it."""
    for other in range(codes.ndim):
        if other != axis:
            codes = codes.narrow(other, 0, 1)
    return len(torch.unique(codes))
