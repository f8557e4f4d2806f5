"""What labels claim: which tokens the tokens of a slot can depend on, for a few tokens that are asked about.

A label says which token an element is of, and which sites lie behind it. With the pairs of rows and columns
of these sites that is a claim on what the element can depend on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxplain.labels.findings import Findings
from fxplain.labels.flows import Site
from fxplain.labels.labels import Slot, broadcast, codes_of, samples_of
from fxplain.ops.windows import concrete


class Reach:
    """For each of some questions, about a token of a sample or one of each, who claims to depend on it.

    Places are numbered [sample, token]; those of no known sample come after all samples.

    Args:
        findings: what the labelling run saw.
        asked: for each question the pairs (sample, token) that it is about.
    """

    def __init__(self, findings: Findings, asked: Sequence[Sequence[tuple[int, int]]]) -> None:
        spaces = findings.ledger.spaces
        self.tokens = spaces[-1].start + spaces[-1].size if spaces else 0
        self.batch = findings.batch
        self.own = torch.zeros((self.batch + 1) * self.tokens, len(asked), dtype=torch.bool)
        for question, pairs in enumerate(asked):
            for sample, token in pairs:
                self.own[self._number(sample, token), question] = True
        self.sites = findings.ledger.sites
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
        return found | (count > 0) | (self.of(site.rows.reads) & inside[:, None])

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
