"""How much relevance lies on an attention sink, told where it is much.

Only where one token has a large share of the relevance are maps looked at, and of these few rows: the rest of
an explanation costs nothing more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.attention.plan import Plan
from fxplain.attribution.prediction import Prediction
from fxplain.maps.products import MapProducts
from fxplain.rules.raw_attention import head_mean
from fxplain.rules.sinks import is_sink, parked_on

LARGE = 0.25
"""The share of a sample's relevance on one token from which on it is asked whether that is a sink."""
ROWS = 32
"""Queries of each attention that are looked at: the last ones, which see most where masks are causal."""
WORDS = 1 << 12
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
            f"query{way_out}"
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
        if looked_at and 2 < len(plan.keys) <= WORDS:
            queries = plan.queries[-ROWS:]
            own = queries[:, None] == plan.keys[None]
            on = parked_on(_rows(prediction, plan), own).cpu()
            parked[:, plan.keys] += on
            held[:, plan.keys] += 1
    return parked, held


def _rows(prediction: Prediction, plan: Plan) -> Tensor:
    """[batch, query, key]: the last rows of a map's mean over heads."""

    def mean(maps: Tensor, gradients: Tensor | None, dim: tuple[int, ...]) -> Tensor:
        return head_mean(maps, dim)

    map = MapProducts(plan, prediction.run, [None], mean, again=False)
    count = len(plan.queries)
    some = torch.eye(min(ROWS, count), count).roll(max(count - ROWS, 0), 1)
    device = prediction.resolved.scores.device
    return map.left(some.expand(plan.batch, -1, -1).to(device))
