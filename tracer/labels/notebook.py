"""What the labelling run writes down: tokens as they are born, sites, and remarks on operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fxplain.labels.flows import Site, Window
from fxplain.labels.labels import Slot, codes_of
from fxplain.labels.tokens import Tokens


@dataclass(frozen=True)
class Looked:
    """A recognition rule that looked at a node, and why it did not match; no reason where it did."""

    node: fx.Node
    rule: str
    reason: str = ""


@dataclass(frozen=True)
class Taken:
    """Tokens that were gathered by an index along an axis: whose they are, place by place."""

    index: Tensor
    axis: int
    size: int
    slot: Slot


@dataclass
class Remarks:
    """What is to be said of single operations: in the census, in notes, by ``inspect --why``."""

    softmaxes: dict[str, tuple[fx.Node, str]] = field(default_factory=dict)
    """Softmax-like node -> (node, what the normalised axis holds: ``tokens``, ``features``, ``channels`` or
    ``versions`` of one token)."""
    losses: dict[str, fx.Node] = field(default_factory=dict)
    """Nodes that labelled data reached and that have no transfer function."""
    failures: dict[str, str] = field(default_factory=dict)
    """Node -> why its transfer function failed."""
    probed: list[fx.Node] = field(default_factory=list)
    """Nodes without a transfer function that an experiment showed to treat every token by itself."""
    without_gradient: list[fx.Node] = field(default_factory=list)
    """Operations on tokens that have no derivative, though they are no choice among tokens."""
    summaries: dict[fx.Node, tuple[fx.Node, Slot]] = field(default_factory=dict)
    """Products that sum all tokens into features (linear and kernel attention), each with what it summed: the
    second operand's node, and its tokens."""
    unfollowed: dict[fx.Node, tuple[str, str]] = field(default_factory=dict)
    """Operations that mix tokens and let each place stand for its own (recurrences, running sums): role and
    reason for the census. That mixing is told, and not followed."""
    statistics: list[fx.Node] = field(default_factory=list)
    """Normalisations that take statistics of several tokens together."""
    padding_weighed: dict[fx.Node, None] = field(default_factory=dict)
    """Attentions in which places that are no tokens have weight, in order."""
    looked: list[Looked] = field(default_factory=list)
    """What the recognition rules made of the nodes that they looked at."""


@dataclass
class Ledger:
    """Mutable notes of one labelling run."""

    batch: int = 1
    batch_axis: int | None = 0
    """Where the inputs are taken to have the batch."""
    tokens: Tokens = field(default_factory=Tokens)
    sites: list[Site] = field(default_factory=list)
    heads: list[frozenset[int]] = field(default_factory=list)
    """Attentions of the same tokens whose outputs lie side by side as features: heads of one, in a loop."""
    taken: list[Taken] = field(default_factory=list)
    """Tokens that were gathered along an axis, and by which index."""
    remarks: Remarks = field(default_factory=Remarks)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    crossing: bool = False
    """Attention was seen between different samples: the assumed batch axis is not one."""
    data_dependent: bool = False
    """Labels depend on values of the inputs, not only on their shapes."""

    def window_over(self, slot: Slot) -> fx.Node | None:
        """What a convolution (or a pooling) read that made a slot's tokens; None if none did."""
        codes = _tokens(slot.labels)
        made = ((s.rows, s.map.operand) for s in self.sites if isinstance(s.map, Window))
        found = (data for rows, data in made if bool(torch.isin(codes, _tokens(rows.labels)).any()))
        return next(found, None)

    def mixed_from(self, slot: Slot, others: Sequence[Slot]) -> bool:
        """Whether a slot's tokens were made by mixings, in the end, of tokens of the others."""
        if not others or not self.tokens.mixed_at(slot):
            return False
        behind = torch.zeros(self.tokens.count, dtype=torch.bool)
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

    def note_heads(self, slots: Sequence[Slot]) -> None:
        """Note heads whose outputs are laid side by side: slots of the same tokens, behind one site each."""
        shared = frozenset.intersection(*(slot.reads for slot in slots))
        own = [frozenset(i for i in slot.reads - shared if not self.sites[i].absorbed) for slot in slots]
        known = set(self.heads)
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
            self.heads = [old for old in self.heads if not old <= group] + [group]

    def add_site(self, **facts: object) -> Site:
        site = Site(index=len(self.sites), **facts)  # type: ignore[arg-type]
        self.sites.append(site)
        return site


def _same_tokens(one: Slot, other: Slot) -> bool:
    return torch.equal(*(torch.unique(slot.labels[slot.labels > 0]) for slot in (one, other)))


def _tokens(labels: Tensor) -> Tensor:
    codes = codes_of(labels).reshape(-1)
    return codes[codes >= 0]
