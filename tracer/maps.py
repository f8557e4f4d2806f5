"""From a site's map and gradient to weights between tokens: [batch, query, key] for the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fxplain.attentions import Attention
from fxplain.classify import Classified
from fxplain.errors import VerificationError
from fxplain.fused_maps import map_of, own_output
from fxplain.labels import broadcast, compact, samples_of
from fxplain.map_blocks import largest_score, rebuilt_outputs
from fxplain.map_lines import APART, heads_of, line_ranks, samples_on_map
from fxplain.mixing_maps import contributions
from fxplain.ops.convolution import concrete
from fxplain.replay import Replay
from fxplain.sites import Site
from fxplain.where import place_of

HeadMean = Callable[[Tensor, "Tensor | None", tuple[int, ...]], Tensor]
"""(maps, gradients, axes of the heads) -> maps without these axes: eq. 5, or a plain mean."""


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
    heads: tuple[int, ...]
    """Axes of the map along which nothing varies."""
    folded: int
    """How many maps lie on top of each other besides (heads folded into the batch axis)."""
    sampled: bool
    """Whether it is known which sample an element belongs to."""
    assumed: bool
    """Whether that is read off the shape alone, and so must be checked against the gradient."""
    batch: int

    @cached_property
    def place(self) -> Tensor:
        """Where each element goes in [sample, nq, nk], -1 for nowhere; of :attr:`shape`."""
        nk = len(self.keys)
        found = torch.where((self.rows >= 0) & (self.cols >= 0), self.rows * nk + self.cols % max(nk, 1), -1)
        return found.expand(self.shape)

    def only(self, sample: int, gradient: Tensor) -> bool:
        """Whether a gradient of the map, or of the output, is zero but for one sample on the assumed axis."""
        samples = samples_on_map(self.site, self.batch)
        axis = next(axis for axis, size in enumerate(samples.shape) if size > 1)
        others = (samples.reshape(-1) != sample).nonzero().flatten().to(gradient.device)
        return not bool(gradient.index_select(axis, others).any())

    def scatter(self, values: Tensor, divide: bool = True) -> Tensor:
        """Add up values of :attr:`place`'s shape into [batch, nq, nk]."""
        size = self.places
        place = self.place.reshape(-1).to(values.device)
        flat = torch.zeros(size + 1, dtype=values.dtype, device=values.device)
        flat.index_add_(0, torch.where(place >= 0, place, size), values.reshape(-1))
        dense = self.for_all(flat[:size].view(-1, len(self.queries), len(self.keys)))
        return dense / self.folded if divide and self.folded > 1 else dense

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
    unlabelled = all(bool((samples_of(slot.labels) < 0).all()) for slot in (full.rows, full.cols))
    heads = tuple(axis for axis, size in enumerate(shape) if size == 1 and full.shape[axis] > 1)
    unfolded = torch.Size([full.shape[axis] for axis in heads]).numel()
    folded = max(heads_of(full, batch, assume) // unfolded, 1) if site.attends else 1
    assumed = unlabelled and batch > 1 and known
    return Plan(
        site, queries, keys, rows, cols, shape, tuple(full.shape), heads, folded, known, assumed, batch
    )


def _lines(ids: Tensor, tokens: Tensor, samples: Tensor, batch: int) -> Tensor:
    """The row (or column) that each element lies in, [sample, token] in one number; -1 for none."""
    place = torch.searchsorted(tokens, ids.clamp_min(0))
    found = torch.where(samples < 0, batch, samples) * len(tokens) + place
    return torch.where((ids >= 0) & (samples != APART) & (samples <= batch), found, -1)


def attention_weights(plan: Plan, replay: Replay, gradient: Tensor | None, head_mean: HeadMean) -> Tensor:
    """The weights of an attention between tokens: [batch, nq, nk], float32 or better.

    ``gradient`` is that of the site's tapped tensor; None where the score does not depend on it.
    """
    maps, gradient = map_of(plan.site, replay, gradient)
    return folded_heads(plan, maps, gradient, head_mean)


def folded_heads(plan: Plan, maps: Tensor, gradient: Tensor | None, head_mean: HeadMean) -> Tensor:
    """Something of a map's shape, and the map's gradient, without heads and on tokens: [batch, nq, nk]."""
    kept = head_mean(maps, gradient, plan.heads) if plan.heads else every_head(maps, gradient, head_mean)
    return plan.scatter(kept.reshape(plan.shape))


def per_head(plan: Plan, replay: Replay, attention: Attention) -> Tensor:
    """An attention's map as [batch, head, query, key], in the order of its streams."""
    maps, _ = map_of(plan.site, replay, None)
    found = dense(plan, maps)
    rows, cols = (
        torch.searchsorted(own, torch.tensor(stream.tokens)).to(maps.device)
        for own, stream in ((plan.queries, attention.queries), (plan.keys, attention.keys))
    )
    return found[..., rows, :][..., cols]


def dense(plan: Plan, values: Tensor) -> Tensor:
    """Values of the map's shape as [batch, head, query, key], queries and keys in the order of the plan."""
    front = values.permute(*plan.heads, *[axis for axis in range(values.ndim) if axis not in plan.heads])
    flat = front.reshape(-1, torch.Size(plan.shape).numel())
    head = line_ranks(plan.site, plan.batch, plan.sampled)[0].expand(plan.shape).reshape(-1)
    place = torch.where(plan.place.reshape(-1) >= 0, plan.place.reshape(-1), plan.places)
    # queries that have more rows than there are heads (in several windows) have their values added up
    target = ((head % plan.folded) * (plan.places + 1) + place).to(values.device)
    found = values.new_zeros(len(flat), plan.folded * (plan.places + 1)).index_add_(1, target, flat)
    found = found.view(-1, plan.places + 1)[:, : plan.places]
    return plan.for_all(found.reshape(len(found), -1, len(plan.queries), len(plan.keys)).transpose(0, 1))


def every_head(maps: Tensor, gradient: Tensor | None, head_mean: HeadMean) -> Tensor:
    grown = None if gradient is None else gradient.unsqueeze(0)
    return head_mean(maps.unsqueeze(0), grown, (0,))


def mixing_weights(plan: Plan, replay: Replay, gradient: Tensor | None) -> Tensor:
    """The weights of a linear mixing: positive contributions times gradient; even shares where none is
    positive, if the rows are of new tokens that must come from somewhere.

    ⟨∂y/∂oᵢ, Wᵢⱼ xⱼ⟩⁺ is what ∇A ⊙ A is for an attention. Without a gradient every old token counts the same.
    """
    support = (plan.scatter(torch.ones(plan.shape), divide=False) > 0).float()
    if gradient is None:
        return support.to(replay.outputs[0].device)
    values = mixing_values(plan, replay, gradient)
    weights = plan.scatter(values).clamp_min(0)
    if plan.site.adds:
        return weights
    empty = weights.sum(-1, keepdim=True) == 0
    return torch.where(empty, support.to(weights), weights)


def mixing_values(plan: Plan, replay: Replay, gradient: Tensor) -> Tensor:
    """⟨∂y/∂oᵢ, Wᵢⱼ xⱼ⟩ for every element of the map, heads summed: of the plan's shape."""
    values = contributions(plan.site, replay, gradient)
    for axis in plan.heads:
        values = values.sum(axis, keepdim=True)
    return values.reshape(plan.shape)


ROUNDING = 4 * float(torch.finfo(torch.float32).eps)
"""How far a score may be off, relative to its size: scores of thousands are off by thousandths, in the
attention as in its rebuilt map, and softmax hands that on."""


def check_rebuilt(plans: Mapping[int, Plan], replay: Replay, tolerance: float) -> float:
    """The largest relative difference between fused outputs and those of their rebuilt maps."""
    worst = 0.0
    for plan in plans.values():
        site = plan.site
        if site.form != "fused":
            continue
        gap = _gap(site, replay)
        worst = max(worst, gap)
        if not gap <= tolerance and not gap <= largest_score(site, replay) * ROUNDING:
            raise VerificationError(
                "a map rebuilt from query and key does not reproduce its attention's output",
                where=place_of(site.node),
                expected=f"a relative difference of at most {tolerance:g}",
                found=f"{gap:g}",
                hint="please report this model: a variant of fused attention is not understood",
            )
    return worst


def _gap(site: Site, replay: Replay) -> float:
    """How far the output of a rebuilt map is from the attention's own, relative to its largest value."""
    output = own_output(site, replay)
    if not output.numel():
        return 0.0
    found = output.new_zeros(())
    for where, rows in rebuilt_outputs(site, replay):
        apart = (rows - output[(*where, slice(None))].to(rows.dtype)).abs()
        found = torch.maximum(found.to(rows.dtype), apart.max()) if apart.numel() else found
    return float(found / output.abs().max().clamp_min(1e-30))
