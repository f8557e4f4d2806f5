"""What labels claim: which tokens the tokens of a slot can depend on, for a few tokens that are asked about.

A label says which token an element is of, and which sites lie behind it. With the pairs of rows and columns
of these sites that is a claim on what the element can depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxplain.attention.labelled import Labelled
from fxplain.attention.unfollowed import before_attention
from fxplain.labels.findings import Findings
from fxplain.labels.flows import Site
from fxplain.labels.labels import Slot, broadcast, codes_of, reads_of, samples_of
from fxplain.ops.taps import concrete
from fxplain.run.target import Resolved


class Reach:
    """For each of some questions, about a token of a sample or one of each, who claims to depend on it.

    Places are numbered [sample, token]; those of no known sample come after all samples.

    Args:
        findings: what the labelling run saw.
        asked: for each question the pairs (sample, token) that it is about.
    """

    def __init__(self, findings: Findings, asked: Sequence[Sequence[tuple[int, int]]]) -> None:
        spaces = findings.ledger.tokens.spaces
        self.tokens = spaces[-1].start + spaces[-1].size if spaces else 0
        self.batch = findings.batch
        self.own = torch.zeros((self.batch + 1) * self.tokens, len(asked), dtype=torch.bool)
        for question, pairs in enumerate(asked):
            for sample, token in pairs:
                self.own[self._number(sample, token), question] = True
        self.ledger, self.sites = findings.ledger, findings.ledger.sites
        self._behind: dict[int, Tensor] = {}
        self._all: dict[frozenset[int], Tensor] = {}

    def _number(self, sample: int, token: int) -> int:
        return (sample if sample >= 0 else self.batch) * self.tokens + token

    def numbers(self, labels: Tensor) -> Tensor:
        """[sample, token] of each label in one number; -1 where there is no token."""
        samples, codes = samples_of(labels), codes_of(labels)
        found = torch.where(samples >= 0, samples, self.batch) * self.tokens + codes
        return torch.where(codes >= 0, found, -1)

    def of(self, reads: frozenset[int]) -> Tensor:
        """[place, question]: the places that may depend on each token, if these sites lie behind them."""
        found = self.own.clone()
        for index in reads:
            found |= self._site(index)
        return found

    def _site(self, index: int) -> Tensor:
        if index not in self._behind:
            self._behind[index] = torch.zeros_like(self.own)  # a site behind itself adds nothing
            self._behind[index] = self._through(concrete(self.sites[index]))
        return self._behind[index]

    def _through(self, site: Site) -> Tensor:
        rows, cols = self.numbers(site.rows.labels), self.numbers(site.cols.labels)
        pairs = self._pairs(site, rows, cols)
        behind = self._known(self.of(site.cols.reads))
        found = torch.zeros_like(self.own)
        inside = torch.zeros(len(found), dtype=torch.bool)
        inside[pairs[0]] = True
        count = torch.zeros(found.shape, dtype=torch.int32)
        count.index_add_(0, pairs[0], behind[pairs[1]].int())
        found = found | (count > 0) | (self.of(site.rows.reads) & inside[:, None])
        if before_attention(self.ledger, site):  # a note tells of tokens that take in what is made of them
            count.zero_().index_add_(0, pairs[1], found[pairs[0]].int())
            found = found | (count > 0)
        return found

    def _pairs(self, site: Site, rows: Tensor, cols: Tensor) -> Tensor:
        try:
            both = torch.stack(broadcast(rows, cols)).flatten(1)
        except RuntimeError:  # laid out one beside the other: all rows with all columns
            both = torch.cartesian_prod(torch.unique(rows), torch.unique(cols)).T
        both = both[:, (both >= 0).all(0)]
        # a map of learned queries is of no sample, and what it weighs is of one: its row is then, too
        row, col = both[0] // max(self.tokens, 1), both[1] // max(self.tokens, 1)
        lifted = torch.where(row == self.batch, col * self.tokens + both[0] % max(self.tokens, 1), both[0])
        return torch.cat([both, torch.stack([lifted, both[1]])], 1)

    def _known(self, reach: Tensor) -> Tensor:
        """A place of no known sample may stand for that of any."""
        grown = reach.view(self.batch + 1, -1, reach.shape[-1])
        grown = torch.cat([grown[:-1] | grown[-1:], grown.any(0, keepdim=True)])
        return grown.reshape(reach.shape)

    def denied(self, slots: Sequence[Slot]) -> Tensor:
        """[question, ...]: places that one of these slots names, and none admits to depend on what is asked
        about. It broadcasts to the tensor."""
        inside, admitted = [], []
        for slot in slots:
            if slot.reads not in self._all:
                self._all[slot.reads] = self._known(self.of(slot.reads))
            numbers = self.numbers(slot.labels)
            inside.append(numbers >= 0)
            admitted.append(self._all[slot.reads][numbers.clamp_min(0)] & inside[-1][..., None])
        named = torch.stack(broadcast(*inside)).any(0)
        allowed = torch.stack(broadcast(*(each.movedim(-1, 0) for each in admitted))).any(0)
        return named & ~allowed


@dataclass(frozen=True, eq=False)
class Reading:
    """The rows that a score is read from, and what lies behind them there."""

    rows: Tensor
    """[sample, token], tokens of no known sample after all samples."""
    reads: frozenset[int]
    """The sites behind them."""


def readable(sites: Sequence[Site], batch: int, reading: Reading) -> Tensor:
    """[sample, token]: what a readout can depend on by way of these sites, its own rows among it.

    Tokens of no known sample come after all samples. Sites are in order of execution.
    """
    wanted: dict[frozenset[int], Tensor] = {reading.reads: reading.rows}
    total = reading.rows.clone()
    for site in reversed(sites):
        behind = [mask for reads, mask in wanted.items() if site.index in reads]
        if not behind:
            continue
        hit, cols = _hit(concrete(site), torch.stack(behind).any(0), batch)
        for slot, more in ((site.rows, hit), (site.cols, cols)):
            wanted[slot.reads] = wanted.get(slot.reads, torch.zeros_like(more)) | more
            total |= more
    return total


def _hit(site: Site, wanted: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """The rows of a site that are wanted, and the columns that lie in them: [sample, token] each."""
    wanted = wanted | wanted[-1:]  # a place of no known sample may stand for that of any
    wanted[-1] = wanted.any(0)
    try:
        rows, cols = (labels.reshape(-1) for labels in broadcast(site.rows.labels, site.cols.labels))
    except RuntimeError:  # laid out one beside the other: all rows with all columns
        ends = (torch.unique(slot.labels) for slot in (site.rows, site.cols))
        rows, cols = torch.cartesian_prod(*ends).unbind(1)
    codes = codes_of(rows), codes_of(cols)
    owners = [torch.where((own := samples_of(labels)) >= 0, own, batch) for labels in (rows, cols)]
    owner = torch.where(owners[0] < batch, owners[0], owners[1])
    inside = (codes[0] >= 0) & (codes[1] >= 0)
    inside &= wanted[owner, codes[0].clamp_min(0)]
    found = torch.zeros_like(wanted), torch.zeros_like(wanted)
    found[0][owner[inside], codes[0][inside]] = True
    own = torch.where(owners[1] < batch, owners[1], owner)
    found[1][own[inside], codes[1][inside]] = True
    return found


def reached(labelled: Labelled, resolved: Resolved) -> Tensor:
    """[sample, token]: what the rows that are read can depend on by way of the steps, tokens of no known
    sample after all samples."""
    batch = labelled.findings.batch
    rows = torch.zeros(batch + 1, len(labelled.classified.renumber), dtype=torch.bool)
    for own in resolved.rows:
        for sample, token in own:
            rows[sample, token] = True
    found = readable(labelled.classified.sites, batch, Reading(rows, reads_of(resolved.slots)))
    return torch.cat([found[:-1] | found[-1:], found.any(0, keepdim=True)])
