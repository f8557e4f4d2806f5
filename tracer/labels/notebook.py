"""What the labelling run writes down: token spaces as they are born, sites, softmax-like calls, losses."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, fx

from fxplain.labels.elements import Elements, Root
from fxplain.labels.flows import Born, Partial, Site, Stack, Window
from fxplain.labels.labels import FAINT, STRONG, Slot, broadcast, codes_of, compact, encode, samples_of

if TYPE_CHECKING:
    from fxplain.labels.operand import Operand, Taken, Weighed


@dataclass(frozen=True)
class Looked:
    """A recognition rule that looked at a node, and why it did not match; no reason where it did."""

    node: fx.Node
    rule: str
    reason: str = ""


@dataclass
class Ledger:
    """Mutable notes of one labelling run."""

    batch: int = 1
    batch_axis: int | None = 0
    """Where the inputs are taken to have the batch."""
    elements: Elements = field(default_factory=Elements)
    spaces: list[Born] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    softmaxes: dict[str, tuple[fx.Node, str]] = field(default_factory=dict)
    """Softmax-like node -> (node, what the normalised axis holds: ``tokens``, ``features``, ``channels`` or
    ``versions`` of one token)."""
    losses: dict[str, fx.Node] = field(default_factory=dict)
    """Nodes that labelled data reached and that have no transfer function."""
    failures: dict[str, str] = field(default_factory=dict)
    """Node -> why its transfer function failed."""
    probed: list[fx.Node] = field(default_factory=list)
    """Nodes without a transfer function that an experiment showed to treat every token by itself."""
    beside: list[frozenset[int]] = field(default_factory=list)
    """Attentions of the same tokens whose outputs lie side by side as features: heads of one, in a loop."""
    without_gradient: list[fx.Node] = field(default_factory=list)
    """Operations on tokens that have no derivative, though they are no choice among tokens."""
    stacks: dict[str, Stack] = field(default_factory=dict)
    partial: dict[str, Partial] = field(default_factory=dict)
    """Nodes that hold the output of an attention, or a sum of some, until something else is done to it."""
    factors: dict[str, tuple[Operand, Operand]] = field(default_factory=dict)
    """Elementwise products of two labelled tensors, while they are alive: what was multiplied."""
    weighed: dict[str, Weighed] = field(default_factory=dict)
    """Such products, also laid out otherwise, each with the node that made it."""
    taken: list[Taken] = field(default_factory=list)
    """Tokens that were gathered along an axis, and by which index."""
    summaries: dict[fx.Node, tuple[fx.Node, Slot]] = field(default_factory=dict)
    """Products that sum all tokens into features (linear and kernel attention), each with what it summed: the
    second operand's node, and its tokens."""
    unfollowed: dict[fx.Node, tuple[str, str]] = field(default_factory=dict)
    """Operations that mix tokens and let each place stand for its own (recurrences, running sums): role and
    reason for the census. That mixing is told, and not followed."""
    statistics: list[fx.Node] = field(default_factory=list)
    """Normalisations that take statistics of several tokens together."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    crossing: bool = False
    """Attention was seen between different samples: the assumed batch axis is not one."""
    data_dependent: bool = False
    """Labels depend on values of the inputs, not only on their shapes."""
    copies: dict[tuple[int, int], int] = field(default_factory=dict)
    """(token, which copy of it in a sequence) -> the token that the copy is."""
    twins: set[int] = field(default_factory=set)
    """Tokens that stand at several places of one sequence with another content at each."""
    blank: dict[fx.Node, None] = field(default_factory=dict)
    """Attentions in which places that are no tokens have weight, in order."""
    tied: set[fx.Node] = field(default_factory=set)
    """Products that are scores of columns, summed over the rows of a grid."""
    rows_alike: set[int] = field(default_factory=set)
    """Tokens that several rows of a map are of, along an axis that the values lack: copies, or heads."""
    looked: list[Looked] = field(default_factory=list)
    """What the recognition rules made of the nodes that they looked at."""
    _tokens: dict[tuple[str, int], int] = field(default_factory=dict)
    _mixed: dict[tuple[object, ...], int] = field(default_factory=dict)

    def elements_of(self, tokens: Collection[int]) -> list[int]:
        """The element codes that became these tokens."""
        return [code for (_, code), token in self._tokens.items() if token in tokens]

    def new_tokens(self, count: int, **facts: object) -> int:
        start = self.spaces[-1].start + self.spaces[-1].size if self.spaces else 0
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

    def window_over(self, slot: Slot) -> fx.Node | None:
        """What a convolution (or a pooling) read that made a slot's tokens; None if none did."""
        codes = _tokens(slot.labels)
        made = ((s.rows, s.map.operand) for s in self.sites if isinstance(s.map, Window))
        found = (data for rows, data in made if bool(torch.isin(codes, _tokens(rows.labels)).any()))
        return next(found, None)

    def mixed_from(self, slot: Slot, others: Sequence[Slot]) -> bool:
        """Whether a slot's tokens were made by mixings, in the end, of tokens of the others."""
        if not others or not self.mixed_at(slot):
            return False
        behind = torch.zeros(self.spaces[-1].start + self.spaces[-1].size, dtype=torch.bool)
        source = torch.zeros_like(behind)
        behind[_tokens(slot.labels)] = True
        for other in others:
            source[_tokens(other.labels)] = True
        if bool((behind & source).any()):
            return False
        for site in reversed(self.sites):
            if site.makes_tokens and bool(behind[_tokens(site.rows.labels)].any()):
                behind[_tokens(site.cols.labels)] = True
        return bool((behind & source).any())

    def beyond_stem(self, reads: frozenset[int]) -> bool:
        """Whether some of these sites are more than windows of a convolution before any attention."""
        return not all(isinstance(self.sites[read].map, Window) for read in reads)

    def attended(self, reads: frozenset[int]) -> bool:
        """Whether an attention is among these sites."""
        return any(self.sites[read].attends for read in reads)

    def wake(self, slot: Slot, node: fx.Node, tag: str = "", table: str | None = None) -> Slot:
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
            tokens[inside] = self._tokens_of(present[inside], slot, node, tag, own)
            strength = max(strength, STRONG if root.is_input and tag else root.strength)
        places = torch.searchsorted(present, codes.clamp_min(0)).clamp_max(max(len(present) - 1, 0))
        woken = torch.where(codes >= 0, tokens[places], -1) if len(present) else codes
        return Slot(compact(encode(samples_of(slot.labels), woken)), strength, slot.reads)

    def _tokens_of(self, codes: Tensor, slot: Slot, node: fx.Node, tag: str, root: Root) -> Tensor:
        keys = [(tag, int(code)) for code in codes.tolist()]
        fresh = [key for key in keys if key not in self._tokens]
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
            self._tokens.update({key: start + place for place, key in enumerate(fresh)})
        return torch.tensor([self._tokens[key] for key in keys], dtype=torch.int64)

    def rebirth(
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
        if key not in self._mixed:
            count = int(codes.max()) + 1 if codes.numel() else 0
            grid = grid_of(labels, count)
            finer = grid if old is None else self._lie(codes, codes_of(old.labels), count)
            grid = max(grid, finer, key=len)
            self._mixed[key] = self.new_tokens(count, grid=grid, origin=origin, source=source, node=node)
        # the tokens are the same every time, their sample may be another: one after the other, in a loop
        tokens = torch.where(codes >= 0, codes + self._mixed[key], -1)
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

    def lay_beside(self, slots: Sequence[Slot]) -> None:
        """Note heads whose outputs are laid side by side: slots of the same tokens, behind one site each."""
        shared = frozenset.intersection(*(slot.reads for slot in slots))
        own = [frozenset(i for i in slot.reads - shared if not self.sites[i].absorbed) for slot in slots]
        known = set(self.beside)
        if len(own) < 2 or any(len(each) != 1 and each not in known for each in own):
            return
        group = frozenset().union(*own)
        members = [self.sites[index] for index in sorted(group)]
        first = members[0]
        alike = all(
            site.role == "attention"
            and _same_tokens(site.rows, first.rows)
            and _same_tokens(site.cols, first.cols)
            for site in members
        )
        later = self.sites[first.index + 1 :]
        if alike and not any((site.rows.reads | site.cols.reads) & group for site in later):
            self.beside = [old for old in self.beside if not old <= group] + [group]

    def add_site(self, **facts: object) -> Site:
        site = Site(index=len(self.sites), **facts)  # type: ignore[arg-type]
        self.sites.append(site)
        return site


def _same_tokens(one: Slot, other: Slot) -> bool:
    return torch.equal(*(torch.unique(slot.labels[slot.labels > 0]) for slot in (one, other)))


def _tokens(labels: Tensor) -> Tensor:
    codes = codes_of(labels).reshape(-1)
    return codes[codes >= 0]


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
