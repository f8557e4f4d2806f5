"""How much relevance lies on an attention sink, told where it is much.

Only where one token has a large share of the relevance is the graph run again, without gradients, to look at
a few rows of each attention (:mod:`fxplain.attribution.looking`): no map is held for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fxplain.attention.plan import Plan
from fxplain.attribution.looking import look, some_rows, value_node
from fxplain.attribution.prediction import Prediction
from fxplain.labels.flows import WrittenOut
from fxplain.labels.labels import broadcast
from fxplain.rules.sinks import is_sink, parked_on, short
from fxplain.run.replay import Replay

LARGE = 0.2
"""The share of a sample's relevance on one token from which on it is asked whether that is a sink."""
ROWS = 32
"""Queries of each attention that are looked at: the last ones, which see most where masks are causal."""
MOST = 1 << 14
"""The most keys of an attention that is looked at."""
NET = "net_relevancy"


def sink_notes(prediction: Prediction, rows: Tensor, method: str) -> tuple[str, ...]:
    """A note for each token that is a sink and has a large share of some sample's relevance.

    Args:
        rows: [batch, token], the relevance; what is negative does not count.
        method: the name of the method that it is of.
    """
    positive = rows.detach().clamp_min(0)
    shares = positive / positive.sum(1, keepdim=True).clamp_min(1e-30)
    large = shares >= max(LARGE, 2 / max(rows.shape[1], 1))
    if not bool(large.any()):
        return ()
    parked, held = (count.to(shares.device) for count in _counted(prediction))
    return tuple(_told(prediction, shares, large & is_sink(parked, held), (parked, held), method))


def _told(
    prediction: Prediction, shares: Tensor, found: Tensor, counts: tuple[Tensor, Tensor], method: str
) -> Iterator[str]:
    """One note for each token, over its samples."""
    parked, held = counts
    for token in found.any(0).nonzero().flatten().tolist():
        of = found[:, token]
        share, attentions = float(shares[of, token].mean()), int(parked[of, token].amin())
        samples = f" (in {int(of.sum())} of {len(of)} samples)" if len(of) > 1 else ""
        there = int(held[of, token].amax())
        yield (
            f"{share:.0%} of the relevance lies on {_named(prediction, token)}{samples}, an attention sink: "
            f"in {attentions} of {there} attentions most queries attend to it most, and its values are "
            f"short; what lies there says little of the prediction{_way_out(method)}"
        )


def _way_out(method: str) -> str:
    """The method to take, where it answers the same question."""
    of_kin = method.startswith(("relevancy", "transformer_attribution"))
    return f": method={NET!r} lets heads cancel there" if of_kin else ""


def _named(prediction: Prediction, token: int) -> str:
    for space in prediction.labelled.classified.spaces:
        if space.start <= token < space.start + space.size:
            return f"token {token - space.start} of {space.name}"
    return f"token {token}"


def _counted(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """[batch, token] twice: how many attentions park on it, and how many have it among their keys. Looked at
    once for all methods and targets of a run."""
    seen = prediction.run.seen
    if "parked" not in seen:
        seen["parked"], seen["held"] = _count(prediction)
    return seen["parked"], seen["held"]


def _count(prediction: Prediction) -> tuple[Tensor, Tensor]:
    labelled = prediction.labelled
    batch, tokens = prediction.batch, labelled.classified.tokens
    parked, held = (torch.zeros(batch, tokens, dtype=torch.int64) for _ in range(2))

    def see(plan: Plan, run: Replay) -> bool:
        sizes = value_sizes(plan, run)
        if sizes is not None:
            queries = torch.arange(len(plan.queries))[-ROWS:]
            own = plan.queries[queries, None] == plan.keys[None]
            on = short(sizes).cpu() & parked_on(some_rows(plan, run, queries).cpu(), own)
            parked[:, plan.keys] += on
            held[:, plan.keys] += 1
        return False

    plans = [labelled.plans[site.index] for site in labelled.classified.sites if site.role == "attention"]
    wanted = [p.site for p in plans if p.sampled and p.batch == batch and 2 < len(p.keys) <= MOST]
    look(labelled, prediction.bound, wanted, see)
    return parked, held


def value_sizes(plan: Plan, run: Replay) -> Tensor | None:
    """[batch, key]: the lengths of an attention's values, mean over heads; None where it has not one tensor
    of values, such as a sum of attentions."""
    map, node = plan.site.map, value_node(plan.site)
    if node is None:
        return None
    value: Tensor = run.kept[node.name]
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    if isinstance(map, WrittenOut):
        axes = map.layout
        if len(axes.values) != value.ndim:
            return None
        known = [letter for letter in axes.map if letter in axes.values]
        lengths = torch.einsum(f"{axes.values}->{''.join(known)}", value**2).sqrt()
        sizes = dict(zip(known, lengths.shape, strict=True))
        lengths = lengths.reshape([sizes.get(letter, 1) for letter in axes.map])
    else:
        lengths = value.norm(dim=-1).unsqueeze(-2)
    sizes_of = zip(lengths.shape, plan.cols.shape, strict=False)
    if lengths.ndim != plan.cols.ndim or any(1 not in pair and len({*pair}) > 1 for pair in sizes_of):
        return None  # parts of one softmax, side by side
    if plan.heads:
        lengths = lengths.mean(plan.heads, keepdim=True)
    cols, lengths = broadcast(plan.cols.to(lengths.device), lengths)
    places, count = cols.reshape(-1), plan.batch * len(plan.keys)
    places = torch.where((places >= 0) & (places < count), places, count)
    sums = lengths.new_zeros(2, count + 1)
    sums.index_add_(1, places, torch.stack([lengths.reshape(-1), torch.ones_like(lengths).reshape(-1)]))
    return (sums[0] / sums[1].clamp_min(1))[:-1].view(plan.batch, -1)
