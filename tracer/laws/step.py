"""The step law: what a step claims is what it does.

A step claims, for every row and column of its map, what the column's source gives to the row: ``A ⊙ ∇A``
for an attention, ``⟨∂y/∂o, contribution⟩`` for a mixing. Here the step alone is run again, its sources free
and all else held, and its own vector-Jacobian product tells the truth. With a random cotangent g on the
output o and the sources v, the claims of a column must add up to ``⟨v[column], Jᵀg⟩``; and if g is multiplied
with a number for each row, every claim must be multiplied with its row's. For a random g both hold with
probability 0 where any claim is wrong, so one look is for all rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled
from fxplain.attention.plan import Plan
from fxplain.capture.guard import same_random_numbers
from fxplain.capture.verify import tolerance
from fxplain.labels.flows import Site
from fxplain.labels.labels import Slot, codes_of
from fxplain.laws.alone import Alone, alone
from fxplain.maps.attentions import map_of
from fxplain.maps.weights import dense, mixing_values
from fxplain.run.replay import Replay, execute, has_map, kept_nodes
from fxplain.where import place_of

MOST = 1 << 24
"""Places of a map beyond which a step is not looked at: its map and gradient are formed whole."""


@dataclass(frozen=True)
class Violation:
    """A step that does not do what it claims."""

    node: fx.Node
    what: str
    admitted: bool = False

    def __str__(self) -> str:
        return f"{place_of(self.node)}: {self.what}"


def violations(labelled: Labelled, bound: Mapping[str, Tensor]) -> tuple[Violation, ...]:
    """Where the step law is broken, in order of execution."""
    return tuple(found for found in looked_at(labelled, bound) if isinstance(found, Violation))


def looked_at(labelled: Labelled, bound: Mapping[str, Tensor]) -> Iterator[Violation | Site]:
    """Each step that holds, as a site, or what is wrong with it; steps that cannot be run alone are left
    out."""
    law = _Law(labelled, bound)
    with torch.no_grad(), same_random_numbers():
        execute(labelled.captured, bound, law.see)
    yield from law.found


@dataclass
class _Law:
    """Sees the graph run, and judges each step as soon as all that it needs is known."""

    labelled: Labelled
    bound: Mapping[str, Tensor]
    found: list[Violation | Site] = field(default_factory=list)

    def __post_init__(self) -> None:
        labelled = self.labelled
        self.generator = torch.Generator().manual_seed(0)
        self.least = 10 * tolerance([t for t in self.bound.values() if t.is_floating_point()])
        self.steps = {s.node: step for s in labelled.classified.sites if (step := alone(s)) is not None}
        self.wanted: dict[fx.Node, fx.Node] = {}
        """Node -> the last step that needs it."""
        for node, step in self.steps.items():
            needed = {*kept_nodes(step.site), *step.sources, *step.beside, node}
            self.wanted.update(dict.fromkeys(needed, node))
        self.kept: dict[str, Any] = {}

    def see(self, node: fx.Node, value: Any) -> Any:
        if node in self.wanted:
            self.kept[node.name] = value.clone() if isinstance(value, Tensor) else value
        if node in self.steps:
            self.found += self._judged(self.steps[node])
            self.kept = {
                n.name: self.kept[n.name]
                for n, last in self.wanted.items()
                if n.name in self.kept and last is not node
            }
        return value

    def _judged(self, step: Alone) -> list[Violation | Site]:
        plan = self.labelled.plans[step.site.index]
        if torch.Size(plan.full).numel() > MOST:
            return []
        told = _told(step, plan, self.labelled, self.kept, self.generator, self.least)
        wrong = [Violation(step.site.node, what) for what in told]
        return [*wrong] if wrong else [step.site]


def _told(
    step: Alone,
    plan: Plan,
    labelled: Labelled,
    kept: Mapping[str, Any],
    generator: torch.Generator,
    least: float,
) -> Iterator[str]:
    """What is wrong with one step."""
    site = step.site
    sources = [_named(labelled, node, site.cols) for node in step.sources]
    target = _named(labelled, site.node, site.rows)
    if target is None or any(source is None for source in sources):
        return
    output = step.run(kept)
    rows = _places(target, plan.queries, labelled).expand(output.shape)
    numbers = torch.rand(len(plan.queries), generator=generator) + 0.5
    noise = torch.randn(output.shape, generator=generator).to(output) * (rows >= 0).to(output)
    scaled = noise * numbers.to(output)[rows.clamp_min(0)]
    claims = [_claimed(step, plan, kept, each) for each in (noise, scaled)]
    truth = _true(step, [s for s in sources if s is not None], plan, labelled, kept, noise)
    size = float(torch.stack([truth.abs().max(), claims[0].abs().max()]).max().clamp_min(1e-30))
    apart = (claims[0].sum((0, 1)) - truth).abs()
    if float(apart.max()) > least * size:
        column = int(apart.argmax())
        name = _token(labelled, plan.keys, column)
        yield (
            f"the step claims that {name} gives {float(claims[0].sum((0, 1))[column]):.3g} of it, "
            f"and it gives {float(truth[column]):.3g}"
        )
        return
    gap = (claims[1] - claims[0] * numbers.to(claims[0])[:, None]).abs()
    if float(gap.max()) > least * size:
        row = int(gap.amax((0, 2)).argmax())
        yield f"what the step claims for {_token(labelled, plan.queries, row)} goes to other places"
        return
    yield from _weights(site, plan, kept, least)


def _token(labelled: Labelled, tokens: Tensor, place: int) -> str:
    token = int(tokens[place])
    space = next(s for s in labelled.classified.spaces if s.start <= token < s.start + s.size)
    return f"{space.name}[{token - space.start}]"


def _named(labelled: Labelled, node: fx.Node, like: Slot) -> Slot | None:
    """The slot of a tensor that names tokens of a site's side, if there is just one."""
    tokens = torch.unique(codes_of(like.labels))
    found = [
        slot
        for slot in labelled.findings.value(node).active
        if bool(torch.isin(codes_of(slot.labels), tokens[tokens >= 0]).any())
    ]
    return found[0] if len(found) == 1 else None


def _places(slot: Slot, tokens: Tensor, labelled: Labelled) -> Tensor:
    """The place of each element's token among these; -1 for none."""
    ids = labelled.classified.token_ids(slot.labels)
    place = torch.searchsorted(tokens, ids.clamp_min(0)).clamp_max(max(len(tokens) - 1, 0))
    return torch.where((ids >= 0) & (tokens[place] == ids), place, -1)


def _claimed(step: Alone, plan: Plan, kept: Mapping[str, Any], cotangent: Tensor) -> Tensor:
    """[batch, query, key]: what the step claims that each column gives to each row."""
    replay = Replay((cotangent,), {}, kept)
    if plan.site.attends:
        gradient = step.to_map(kept, cotangent) if has_map(plan.site) else cotangent
        maps, grown = map_of(plan.site, replay, gradient)
        assert grown is not None
        values = maps * grown
        for axis in plan.heads:
            values = values.sum(axis, keepdim=True)
        values = values.reshape(plan.shape)
    else:
        values = mixing_values(plan, replay, cotangent)
    return plan.scatter(values, divide=False)


def _true(
    step: Alone,
    slots: Sequence[Slot],
    plan: Plan,
    labelled: Labelled,
    kept: Mapping[str, Any],
    cotangent: Tensor,
) -> Tensor:
    """[key]: ⟨v[column], Jᵀg⟩, of all samples together."""
    found = torch.zeros(len(plan.keys) + 1, dtype=torch.float64)
    for slot, given in zip(slots, step.given(kept, cotangent), strict=True):
        place = _places(slot, plan.keys, labelled).expand(given.shape)
        found.index_add_(0, place.reshape(-1) % (len(plan.keys) + 1), given.double().cpu().reshape(-1))
    return found[:-1]


def _weights(site: Site, plan: Plan, kept: Mapping[str, Any], least: float) -> Iterator[str]:
    """What is wrong with the weights of an attention, if they are those of a softmax."""
    if site.role != "attention" or site.normaliser != "softmax":
        return
    maps, _ = map_of(site, Replay((), {}, kept), None)
    sums = dense(plan, maps).double().sum(-1)
    if not sums.numel():
        return
    if float(sums.max()) > 1 + 10 * least:
        yield f"a row of its map sums to {float(sums.max()):.3g}, and those of a softmax to 1 at most"
    if float(maps.min()) < -least:
        yield f"a weight of its map is {float(maps.min()):.3g}, and those of a softmax are not negative"
