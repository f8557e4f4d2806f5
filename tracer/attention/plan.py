"""Where the rows and columns of one step's map stand among the tokens of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fxplain.attention.classify import Classified
from fxplain.attention.lines import APART, heads_of, samples_on_map
from fxplain.labels.flows import Site
from fxplain.labels.labels import broadcast, compact, samples_of
from fxplain.ops.taps import concrete


@dataclass(frozen=True)
class Plan:
    """How one site's map is folded onto tokens: made once for a layout of labels."""

    site: Site
    queries: Tensor
    """Token indices [nq] of the rows."""
    keys: Tensor
    """Token indices [nk] of the columns."""
    rows: Tensor
    """The row that each element of the map lies in, [sample, nq] in one number, -1 for none; size 1 along
    axes where that does not vary. A sample after the last is for what is of no known sample."""
    cols: Tensor
    """Likewise its column, [sample, nk] in one number."""
    shape: tuple[int, ...]
    """The map's shape, with heads at size 1."""
    full: tuple[int, ...]
    """The map's shape."""
    folded: int
    """How many maps lie on top of each other besides (heads folded into the batch axis)."""
    sampled: bool
    """Whether it is known which sample an element belongs to."""
    batch: int

    @cached_property
    def heads(self) -> tuple[int, ...]:
        """Axes of the map along which nothing varies."""
        sizes = enumerate(zip(self.shape, self.full, strict=True))
        return tuple(axis for axis, (size, full) in sizes if size == 1 and full > 1)

    @cached_property
    def assumed(self) -> bool:
        """Whether samples are read off the shape alone, which must be checked against the gradient."""
        labels = (self.site.rows.labels, self.site.cols.labels)
        return self.sampled and self.batch > 1 and all(bool((samples_of(own) < 0).all()) for own in labels)

    @cached_property
    def place(self) -> Tensor:
        """Where each element goes in [sample, nq, nk], -1 for nowhere; of :attr:`shape`."""
        nk = len(self.keys)
        found = torch.where((self.rows >= 0) & (self.cols >= 0), self.rows * nk + self.cols % max(nk, 1), -1)
        return found.expand(self.shape)

    @cached_property
    def pairs_apart(self) -> bool:
        """Whether, heads aside, each pair of tokens has at most one element of the map. (False where that
        is not seen from rows and columns alone.)"""
        known = self.rows[self.rows >= 0]
        if self.folded > 1 or len(torch.unique(known)) < len(known):
            return False
        # two elements of one pair lie in one row, so at one place of the axes along which rows differ
        along = [axis for axis, size in enumerate(self.rows.shape) if size > 1]
        others = [axis for axis in range(self.cols.ndim) if axis not in along]
        count = torch.Size([self.cols.shape[axis] for axis in others]).numel()
        lines = self.cols.permute(*along, *others).reshape(-1, count).sort(-1).values
        return not bool(((lines[:, 1:] == lines[:, :-1]) & (lines[:, 1:] >= 0)).any())

    def only(self, sample: int, gradient: Tensor) -> bool:
        """Whether a gradient of the map, or of the output, is zero but for one sample on the assumed axis."""
        samples = samples_on_map(self.site, self.batch)
        axis = next(axis for axis, size in enumerate(samples.shape) if size > 1)
        others = (samples.reshape(-1) != sample).nonzero().flatten().to(gradient.device)
        return not bool(gradient.index_select(axis, others).any())

    @property
    def rows_apiece(self) -> Tensor:
        """[nq]: how many rows of one head's map each query has: one, unless it stands at several places of a
        sample. The rows of these are added up."""
        found = torch.ones(len(self.queries), dtype=torch.int64)
        if not self.site.axes.columns:
            return found
        lines = self.rows.expand(self.shape).amax(list(self.site.axes.columns))
        known, counts = torch.unique(lines[lines >= 0], return_counts=True)
        most = torch.div(counts, self.folded, rounding_mode="floor").clamp_min(1)
        return found.index_reduce_(0, known % max(len(self.queries), 1), most, "amax")

    def scatter(self, values: Tensor, divide: bool = True) -> Tensor:
        """Add up values of :attr:`place`'s shape into [batch, nq, nk]."""
        dense = self.for_all(self.laid(values))
        return dense / self.folded if divide and self.folded > 1 else dense

    def laid(self, values: Tensor) -> Tensor:
        """Likewise, [batch, nq, nk], but what is of no known sample apart: it comes last, if there is any."""
        size = self.places
        place = self.place.reshape(-1).to(values.device)
        flat = torch.zeros(size + 1, dtype=values.dtype, device=values.device)
        flat.index_add_(0, torch.where(place >= 0, place, size), values.reshape(-1))
        return flat[:size].view(-1, len(self.queries), len(self.keys))

    @property
    def places(self) -> int:
        """How many places there are: a map for each sample, and one for what is of no known sample."""
        return (self.batch + (not self.sampled)) * len(self.queries) * len(self.keys)

    def for_all(self, dense: Tensor) -> Tensor:
        """What is of no known sample, and comes last, is each one's."""
        return dense if self.sampled else dense[:-1] + dense[-1:]


def make_plan(site: Site, classified: Classified, batch: int, assume: bool = True) -> Plan:
    """Work out where the elements of a site's map belong among the tokens.

    ``assume``: read the samples off the map's shape where no label tells them.
    """
    full = concrete(site)
    samples = compact(samples_on_map(full, batch, assume))
    ids = [classified.token_ids(slot.labels) for slot in (full.rows, full.cols)]
    queries, keys = (torch.unique(own[own >= 0]) for own in ids)
    rows, cols = (_lines(*pair, samples, batch) for pair in zip(ids, (queries, keys), strict=True))
    shape = tuple(broadcast(*ids, samples)[0].shape)
    known = not bool((samples == -1).any()) or not bool(
        ((ids[0] >= 0) & (ids[1] >= 0) & (samples == -1)).any()
    )
    plan = Plan(site, queries, keys, rows, cols, shape, tuple(full.shape), 1, known, batch)
    unfolded = torch.Size([full.shape[axis] for axis in plan.heads]).numel()
    return replace(plan, folded=max(heads_of(full, batch, assume) // unfolded, 1)) if site.attends else plan


def _lines(ids: Tensor, tokens: Tensor, samples: Tensor, batch: int) -> Tensor:
    """The row (or column) that each element lies in, [sample, token] in one number; -1 for none."""
    place = torch.searchsorted(tokens, ids.clamp_min(0))
    found = torch.where(samples < 0, batch, samples) * len(tokens) + place
    return torch.where((ids >= 0) & (samples != APART) & (samples <= batch), found, -1)
