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
from fxplain.labels.call import op_name
from fxplain.labels.flows import Kernel, Site, WrittenOut
from fxplain.labels.labels import Slot, codes_of
from fxplain.laws.alone import Alone, alone
from fxplain.maps.attentions import map_of
from fxplain.maps.weights import dense, mixing_values
from fxplain.run.replay import Replay, execute
from fxplain.where import place_of

MOST = 1 << 24
"""Places of a map beyond which a step is not looked at: its map and gradient are formed whole."""


@dataclass(frozen=True)
class Violation:
    """A step that does not do what it claims."""

    node: fx.Node
    what: str
    set_aside: bool = False
    """Whether it could not be looked at."""

    def __str__(self) -> str:
        return f"{place_of(self.node)}: {self.what}"


def violations(labelled: Labelled, bound: Mapping[str, Tensor]) -> tuple[Violation, ...]:
    """Where the step law is broken, in order of execution; and the steps that could not be looked at, as set
    aside."""
    law = _Law(labelled, bound)
    with torch.no_grad(), same_random_numbers():
        execute(labelled.captured, bound, law.see)
    return tuple(law.found)


@dataclass
class _Law:
    """Sees the graph run, and judges each step as soon as all that it needs is known."""

    labelled: Labelled
    bound: Mapping[str, Tensor]
    found: list[Violation] = field(default_factory=list)

    def __post_init__(self) -> None:
        labelled = self.labelled
        self.generator = torch.Generator().manual_seed(0)
        self.steps = {s.node: step for s in labelled.classified.sites if (step := alone(s)) is not None}
        self.wanted: dict[fx.Node, fx.Node] = {}
        """Node -> the last step that needs it."""
        for node, step in self.steps.items():
            needed = {*step.site.keeps, *step.sources, *step.beside, node}
            needed |= {*_softmaxes(labelled, step.site)}
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

    def _judged(self, step: Alone) -> list[Violation]:
        plan, node = self.labelled.plans[step.site.index], step.site.node
        if not step.region:
            sources = ", ".join(source.name for source in step.sources)
            return [Violation(node, f"what it is said to mix, {sources}, does not lead to it")]
        if torch.Size(plan.full).numel() > MOST:
            return [Violation(node, "its map is too large to be looked at", set_aside=True)]
        slots = [_named(self.labelled, source, step.site.cols) for source in step.sources]
        target = _named(self.labelled, node, step.site.rows)
        known = [slot for slot in slots if slot is not None]
        if target is None or len(known) < len(slots):
            return [Violation(node, "its tokens have several names, and it is not looked at", set_aside=True)]
        told = _told(step, (*known, target), self.labelled, self.kept, self.generator)
        return [Violation(node, what) for what in told]


def _told(
    step: Alone,
    slots: Sequence[Slot],
    labelled: Labelled,
    kept: Mapping[str, Any],
    generator: torch.Generator,
) -> Iterator[str]:
    """What is wrong with one step, whose sources and output are named by these slots."""
    *sources, target = slots
    plan = labelled.plans[step.site.index]
    output = step.run(kept)
    floats = [t for t in (output, *kept.values()) if isinstance(t, Tensor) and t.is_floating_point()]
    least = 10 * tolerance(floats)
    rows = _places(target, plan.queries, labelled).expand(output.shape).to(output.device)
    numbers = torch.rand(len(plan.queries), generator=generator) + 0.5
    noise = torch.randn(output.shape, generator=generator).to(output) * (rows >= 0)
    scaled = noise * numbers.to(output)[rows.clamp_min(0)]
    one, other = (_claimed(step, plan, kept, each).cpu() for each in (noise, scaled))
    places = [_places(slot, plan.keys, labelled) for slot in sources]
    truth, claimed = _columns(places, step.given(kept, noise), one.sum((0, 1)))
    size = max(float(truth.abs().max()), float(one.abs().max()), 1e-30)
    worst = int((claimed - truth).abs().argmax())
    if abs(float(claimed[worst] - truth[worst])) > least * size:
        name = _token(labelled, plan.keys, worst) if worst < len(plan.keys) else "what has other names"
        yield f"{name} gives {float(truth[worst]):.3g} to it, and by its map {float(claimed[worst]):.3g}"
        return
    gap = (other - one * numbers.to(one)[:, None]).abs().amax((0, 2))
    if float(gap.max()) > least * size:
        yield f"what its map gives to {_token(labelled, plan.queries, int(gap.argmax()))} goes elsewhere"
        return
    yield from _rows(plan, kept, least)
    for node in _softmaxes(labelled, step.site):
        if isinstance(kept[node.name], Tensor) and _no_softmax(node, kept[node.name], least):
            yield f"its weights are made by {node.name}, which is taken for a softmax and is none"


def _columns(places: Sequence[Tensor], given: Sequence[Tensor], claims: Tensor) -> tuple[Tensor, Tensor]:
    """[key, and what the sources know by other names]: what the sources give, and what the step claims.

    A key is named by what scores it, and its value may be of another name: that of an earlier run beside it.
    """
    truth = torch.zeros(len(claims) + 1, dtype=torch.float64)
    known = torch.zeros(len(claims) + 1, dtype=torch.bool)
    for place, own in zip(places, given, strict=True):
        line = (place % len(truth)).expand(own.shape).reshape(-1)
        truth.index_add_(0, line, own.double().cpu().reshape(-1))
        known[torch.unique(place)] = True
    known = known[:-1]
    claimed = torch.cat([torch.where(known, claims, 0.0), claims[~known].sum()[None]]).double()
    if bool(known.all()):
        truth[-1] = 0.0  # of no key: padding, which a note tells
    return truth, claimed


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
    """[sample, query, key]: what the step claims that each column gives to each row. What is of no known
    sample comes last, once."""
    replay = Replay((cotangent,), {}, kept)
    if plan.site.attends:
        gradient = step.to_map(kept, cotangent) if plan.site.map.tapped is not None else cotangent
        maps, grown = map_of(plan.site, replay, gradient)
        assert grown is not None
        values = maps * grown
        for axis in plan.heads:
            values = values.sum(axis, keepdim=True)
        values = values.reshape(plan.shape)
    else:
        values = mixing_values(plan, replay, cotangent)
    return plan.laid(values)


def _rows(plan: Plan, kept: Mapping[str, Any], least: float) -> Iterator[str]:
    """What is wrong with the rows of an attention's map: what they sum to, and what made them."""
    site = plan.site
    if site.role != "attention":
        return
    maps, _ = map_of(site, Replay((), {}, kept), None)
    if site.axes.columns:  # a list of pairs has no rows
        given, most = dense(plan, maps).sum(-1), float(maps.sum(site.axes.columns).max())
        # of a token that stands at several places, as a note tells, the rows are added up
        largest = float((given / plan.rows_apiece.to(given)).max())
        if largest > most + 10 * least * max(abs(most), 1.0):
            yield f"a row of the map that is given sums to {largest:.3g}, and its own to {most:.3g} at most"
    divided = isinstance(site.map, WrittenOut) and site.map.divided
    if divided and site.map.normaliser == "softmax" and float(maps.min()) < -least:
        yield f"a weight of its map is {float(maps.min()):.3g}, and those of a softmax are not negative"


def _softmaxes(labelled: Labelled, site: Site) -> list[fx.Node]:
    """What is taken for the softmaxes that made a site's weights; kernels, whose outputs are none, aside."""
    if site.map.normaliser != "softmax":
        return []
    known = labelled.findings.ledger.remarks.softmaxes
    sites = [part for own in labelled.findings.ledger.sites for part in (own, *own.map.parts)]
    kernels = {own.node for own in sites if isinstance(own.map, Kernel)}
    found = [known[name][0] for name in sorted(site.softmaxes) if name in known]
    return [made for node in found if node not in kernels for made in _made_with(node)]


def _made_with(node: fx.Node) -> Iterator[fx.Node]:
    """Where the numbers of a softmax stand: at the node itself, or at what is divided by the sum of a row
    that it is, or is the exponential of scores less its logarithm, where these are written out."""
    if op_name(node) == "aten::sum":
        yield from (user for user in node.users if op_name(user) == "aten::div" and user.args[1] is node)
    elif op_name(node) == "aten::logsumexp":
        less = [user for user in node.users if op_name(user) == "aten::sub" and user.args[1] is node]
        yield from (user for each in less for user in each.users if op_name(user) == "aten::exp")
    else:
        yield node


def _no_softmax(node: fx.Node, value: Tensor, least: float) -> bool:
    """Whether these cannot be a softmax's: negative ones, or none that sum to 1 along any axis. A row whose
    keys are all masked has zeros, or no numbers."""
    whole = value.detach().double()
    whole = whole.exp() if "log_softmax" in op_name(node) else whole
    sums = (whole.sum(axis) for axis in range(whole.ndim))
    one = any(
        bool(((own - 1).abs() <= 10 * least).logical_or(own == 0).logical_or(own.isnan()).all())
        for own in sums
    )
    return bool((whole < -least).any()) or not one
