"""From a site's map and gradient to weights between tokens: [batch, query, key] for the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fxplain.attention.lines import line_ranks
from fxplain.attention.plan import Plan
from fxplain.attention.records import Attention
from fxplain.errors import VerificationError
from fxplain.labels.flows import Kernel, Site
from fxplain.maps.attentions import map_of
from fxplain.maps.kernels import largest_score, own_output, rebuilt_outputs
from fxplain.maps.mixings import contributions
from fxplain.run.replay import Replay
from fxplain.where import place_of

HeadMean = Callable[[Tensor, "Tensor | None", tuple[int, ...]], Tensor]
"""(maps, gradients, axes of the heads) -> maps without these axes: eq. 5, or a plain mean."""


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
    return _ordered(plan, maps, attention)


def weighed_per_head(plan: Plan, replay: Replay, attention: Attention, gradient: Tensor | None) -> Tensor:
    """The positive part of an attention's map times its gradient, laid out as by :func:`per_head`: what eq. 5
    takes the mean of. ``gradient`` as for :func:`attention_weights`."""
    maps, gradient = map_of(plan.site, replay, gradient)
    weighed = torch.zeros_like(maps) if gradient is None else (maps * gradient).clamp_min(0)
    return _ordered(plan, weighed.expand(maps.shape), attention)


def _ordered(plan: Plan, maps: Tensor, attention: Attention) -> Tensor:
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
    head = _head_of(plan).expand(plan.shape).reshape(-1)
    place = torch.where(plan.place.reshape(-1) >= 0, plan.place.reshape(-1), plan.places)
    # queries that have more rows than there are heads (in several windows) have their values added up
    target = ((head % plan.folded) * (plan.places + 1) + place).to(values.device)
    found = values.new_zeros(len(flat), plan.folded * (plan.places + 1)).index_add_(1, target, flat)
    found = found.view(-1, plan.places + 1)[:, : plan.places]
    return plan.for_all(found.reshape(len(found), -1, len(plan.queries), len(plan.keys)).transpose(0, 1))


def _head_of(plan: Plan) -> Tensor:
    """Which of its query's rows each place of the map lies in: rows that have an axis of heads each, where
    heads choose their keys, and those that are folded into another axis."""
    found = line_ranks(plan.site, plan.batch, plan.sampled)[0]
    columns = plan.site.axes.columns
    for axis, size in enumerate(plan.shape):
        if size > 1 and found.shape[axis] == 1 and axis not in columns:
            own = torch.arange(size).view([-1 if place == axis else 1 for place in range(len(plan.shape))])
            found = found * size + own
    return found


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
    if not plan.site.new_rows:
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
        if not isinstance(site.map, Kernel):
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
