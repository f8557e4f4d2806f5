"""How much relevance lies on an attention sink, told where it is much.

Only where one token has a large share of the relevance are maps looked at, and of these few rows: the rest of
an explanation costs nothing more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.attention.plan import Plan
from fxplain.attribution.prediction import Prediction
from fxplain.labels.flows import Kernel, WrittenOut
from fxplain.labels.labels import broadcast
from fxplain.maps.products import MapProducts
from fxplain.rules.raw_attention import head_mean
from fxplain.rules.sinks import is_sink, parked_on, short

LARGE = 0.25
"""The share of a sample's relevance on one token from which on it is asked whether that is a sink."""
ROWS = 32
"""Queries of each attention that are looked at: the last ones, which see most where masks are causal."""
MOST = 1 << 12
"""The most keys of an attention that is looked at."""


def sink_notes(prediction: Prediction, rows: Tensor, better: str | None) -> tuple[str, ...]:
    """A note for each token that is a sink and has a large share of some sample's relevance.

    Args:
        rows: [batch, token], the relevance; what is negative does not count.
        better: the method to name as a way out; None for none.
    """
    positive = rows.detach().clamp_min(0)
    shares = positive / positive.sum(1, keepdim=True).clamp_min(1e-30)
    large = (shares >= LARGE) & (rows.shape[1] > 2)
    if not bool(large.any()) or prediction.run.backward is not None:
        return ()
    if "sinks" not in prediction.shared:
        prediction.shared["sinks"] = _counted(prediction)
    parked, held = (count.to(shares.device) for count in prediction.shared["sinks"])
    found = large & is_sink(parked, held)
    way_out = f"; method={better!r} lets heads cancel there" if better else ""
    notes = []
    for token in found.any(0).nonzero().flatten().tolist():
        of = found[:, token]
        share, attentions = float(shares[of, token].mean()), int(parked[of, token].amin())
        samples = f" (in {int(of.sum())} of {len(of)} samples)" if len(of) > 1 else ""
        notes.append(
            f"{share:.0%} of the relevance lies on {_named(prediction, token)}{samples}, an attention sink: "
            f"{attentions} of {int(held[of, token].amax())} attentions attend to it most, whatever the "
            f"query, and its values are short{way_out}"
        )
    return tuple(notes)


def _named(prediction: Prediction, token: int) -> str:
    for space in prediction.labelled.classified.spaces:
        if space.start <= token < space.start + space.size:
            return f"token {token - space.start} of {space.name}"
    return f"token {token}"


def _counted(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """[batch, token] twice: how many attentions park on it, and how many have it among their keys."""
    batch, tokens = prediction.batch, prediction.labelled.classified.tokens
    parked, held = (torch.zeros(batch, tokens, dtype=torch.int64) for _ in range(2))
    for site in prediction.labelled.classified.sites:
        plan = prediction.labelled.plans[site.index]
        looked_at = site.role == "attention" and plan.sampled and plan.batch == batch
        sizes = _sizes(prediction, plan) if looked_at and 2 < len(plan.keys) <= MOST else None
        if sizes is not None:
            own = plan.queries[-ROWS:, None] == plan.keys[None]
            on = short(sizes).cpu() & parked_on(_rows(prediction, plan).cpu(), own)
            parked[:, plan.keys] += on
            held[:, plan.keys] += 1
    return parked, held


def _sizes(prediction: Prediction, plan: Plan) -> Tensor | None:
    """[batch, key]: the lengths of an attention's values, mean over heads; None if they are not at hand."""
    map = plan.site.map
    node = map.value if isinstance(map, Kernel) else map.values if isinstance(map, WrittenOut) else None
    if node is None or node.name not in prediction.run.kept:
        return None
    value: Tensor = prediction.run.kept[node.name].detach()
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    if isinstance(map, WrittenOut):
        axes = map.layout
        known = [letter for letter in axes.map if letter in axes.values]
        lengths = torch.einsum(f"{axes.values}->{''.join(known)}", value**2).sqrt()
        sizes = dict(zip(known, lengths.shape, strict=True))
        lengths = lengths.reshape([sizes.get(letter, 1) for letter in axes.map])
    else:
        lengths = value.norm(dim=-1).unsqueeze(-2)
    if lengths.ndim != plan.cols.ndim:
        return None
    if plan.heads:
        lengths = lengths.mean(plan.heads, keepdim=True)
    cols, lengths = broadcast(plan.cols.to(lengths.device), lengths)
    places, count = cols.reshape(-1), plan.batch * len(plan.keys)
    places = torch.where((places >= 0) & (places < count), places, count)
    sums = lengths.new_zeros(2, count + 1)
    sums.index_add_(1, places, torch.stack([lengths.reshape(-1), torch.ones_like(lengths).reshape(-1)]))
    return (sums[0] / sums[1].clamp_min(1))[:-1].view(plan.batch, -1)


def _rows(prediction: Prediction, plan: Plan) -> Tensor:
    """[batch, query, key]: the last rows of a map's mean over heads."""

    def mean(maps: Tensor, gradients: Tensor | None, dim: tuple[int, ...]) -> Tensor:
        return head_mean(maps, dim)

    map = MapProducts(plan, prediction.run, [None], mean, again=False)
    count = len(plan.queries)
    some = torch.eye(min(ROWS, count), count).roll(max(count - ROWS, 0), 1)
    device = prediction.resolved.scores.device
    return map.left(some.expand(plan.batch, -1, -1).to(device))
