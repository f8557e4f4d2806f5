"""The influence law: perturb a token where it is born, and no place changes whose label cannot reach it.

The graph is run beside itself, a few times with tokens moved. Integers, booleans and random draws stay as
they were in the first run, so routing and masks do not move. Nor do weights between tokens and what is made
of these alone, so that what moves is what tokens hold. A place that changes although its label denies it is
put back, so that what comes after is held against its own claims alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.unfollowed import carried, followed, multiplied
from fxplain.capture.captured import Captured
from fxplain.capture.guard import same_random_numbers
from fxplain.capture.passes.clean import draws
from fxplain.capture.verify import tolerance
from fxplain.labels.call import op_name
from fxplain.labels.findings import Findings
from fxplain.labels.labels import STRONG, Slot, broadcast, codes_of, samples_of
from fxplain.labels.value import Value
from fxplain.laws.held import scores_in_the_making, weights_of
from fxplain.laws.moved import Moved, runs_of
from fxplain.laws.reach import Reach
from fxplain.ops.creation import MADE
from fxplain.ops.movement import STRIDED, laid_out_as
from fxplain.run.replay import NO_SURROGATES, run_node
from fxplain.where import place_of

MOST_TOKENS = 8
"""How many tokens are moved."""


@dataclass(frozen=True)
class Violation:
    """A node at which places changed that claim not to depend on the token that was moved."""

    node: fx.Node
    source: str
    """The input whose token was moved."""
    token: int
    """The token's place within that input's."""
    share: float
    """Which part of the tensor changed against its labels."""
    size: float
    """The largest such change, relative to the largest magnitude of the tensor."""
    set_aside: bool = False
    """Whether a note says that this is not followed."""

    def __str__(self) -> str:
        moved = f"{self.source}[{self.token}] moves {self.share:.0%} of it, by {self.size:.2g}"
        return f"{place_of(self.node)}: {moved}, and its labels say that it cannot"


def violations(
    captured: Captured,
    bound: Mapping[str, Tensor],
    findings: Findings,
    most: int = MOST_TOKENS,
    told: Collection[str] = (),
) -> tuple[Violation, ...]:
    """Where the influence law is broken, in order of execution; one for each node and token.

    Args:
        captured, bound, findings: the graph, a tensor for each placeholder, and the labels on these tensors.
        most: how many tokens are moved. A batch moves one of each sample in a pass.
        told: inputs of which a note says that they have no tokens of their own.
    """
    runs = runs_of(findings, most)
    if not runs:
        return ()
    with torch.no_grad(), same_random_numbers():
        return _Pass(captured, bound, findings, runs, told).run()


class _Pass:
    """One pass over the graph with the values of the first run, and what differs in the others."""

    def __init__(
        self,
        captured: Captured,
        bound: Mapping[str, Tensor],
        findings: Findings,
        runs: Sequence[Moved],
        told: Collection[str],
    ) -> None:
        self.captured, self.bound, self.findings, self.runs = captured, bound, findings, runs
        self.nodes = list(captured.graph.graph.nodes)
        self.claims = _Claims(captured.graph.graph, findings, runs)
        self.real: dict[fx.Node, Any] = {}
        self.moved: list[dict[fx.Node, Any]] = [{} for _ in runs]
        self.found: list[Violation] = []
        self.told = told
        self.unfollowed = {node for node, _ in carried(findings)} | set(findings.ledger.remarks.statistics)
        self.unfollowed.update(multiplied(findings))
        self.states = _states(self.nodes, findings)
        self.silent = (followed(findings) | set(findings.ledger.remarks.unfollowed)) - self.unfollowed
        self.noise = torch.Generator().manual_seed(0)
        self.in_place = any(_writes(node) for node in self.nodes)
        self.least = 10 * tolerance([t for t in bound.values() if t.is_floating_point()])

    def run(self) -> tuple[Violation, ...]:
        last_use = {used: node for node in self.nodes for used in node.all_input_nodes}
        for node in self.nodes:
            if node.op == "output":
                break
            self._step(node)
            for used in node.all_input_nodes:
                if last_use[used] is node:
                    for values in (self.real, *self.moved):
                        values.pop(used, None)
        return tuple(self.found)

    def _step(self, node: fx.Node) -> None:
        wanted = self.claims.needed[node]
        altered = {run: self._altered(node, self.moved[run]) for run in wanted}
        value = run_node(self.captured, self.bound, node, self.real, NO_SURROGATES)
        self.real[node] = value.clone() if self.in_place and isinstance(value, Tensor) else value
        for run in wanted:
            changed = _held(value, altered[run])
            if isinstance(value, Tensor) and value.is_floating_point():
                changed = self._judged(node, value, self._born(node, value, changed, run), run)
            if changed is not None:
                self.moved[run][node] = changed

    def _altered(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """The node's value where something differs from the first run; None where nothing does."""
        if node.op != "call_function" or draws(node) or op_name(node) in MADE:
            return None
        if not any(used in values for used in node.all_input_nodes):
            return None
        real = {n: values.get(n, self.real[n]) for n in node.all_input_nodes}
        real = {n: v.clone() if isinstance(v, Tensor) and _writes(node) else v for n, v in real.items()}
        if op_name(node) in STRIDED:
            real = {n: laid_out_as(self.real[n], v) for n, v in real.items()}
        return run_node(self.captured, self.bound, node, real, NO_SURROGATES)

    def _is_told(self, node: fx.Node, source: str) -> bool:
        """Whether a note says that an input has no tokens of its own, or that this is not followed."""
        of_state = node in self.states or not self.states.isdisjoint(node.all_input_nodes)
        return node in self.unfollowed or of_state or source in self.told

    def _born(self, node: fx.Node, value: Tensor, changed: Any, run: int) -> Any:
        """With noise at the places where a token that is moved is born."""
        older = [
            slot
            for used in node.all_input_nodes
            for part in self.findings.parts(used)
            for slot in part.active
        ]
        for sample, token in self.runs[run]:
            here = _is_at(self.findings.value(node).active, sample, token, value.shape)
            if here is None or any(bool((codes_of(slot.labels) == token).any()) for slot in older):
                continue
            noise = torch.randn(value.shape, generator=self.noise).to(value)
            size = value.float().abs().mean().clamp_min(0.1).to(value.dtype)
            changed = (value if changed is None else changed) + noise * size * here.to(value.device)
        return changed

    def _judged(self, node: fx.Node, value: Tensor, changed: Any, run: int) -> Tensor | None:
        """What changed, where the labels admit it; the rest is put back, and noted."""
        denied = self.claims.denied.get(node)
        if changed is None or denied is None or not value.numel() or not bool(denied[run].any()):
            return changed  # type: ignore[no-any-return]
        largest = float(value.abs().max().clamp_min(1e-3)) if bool(value.isfinite().all()) else 1.0
        gap = (changed - value).abs()
        bad = (gap > self.least * largest).cpu() & denied[run]
        held = torch.where(denied[run].to(value.device), value, changed)
        if not bool(bad.any()):
            return held  # a rounding, which may grow
        token = self._culprit(node, bad, run)
        space = self.findings.ledger.tokens.space_of(token)
        if node not in self.silent and not self._same_place(node, bad, token):
            size, share = float(gap.cpu()[bad].max()) / largest, float(bad.float().mean())
            told = self._is_told(node, space.source)
            self.found.append(Violation(node, space.source, token - space.start, share, size, told))
        return held

    def _culprit(self, node: fx.Node, bad: Tensor, run: int) -> int:
        """The token of the sample in which the first such place lies; the first one that was moved else."""
        labels = [samples_of(slot.labels).expand(bad.shape)[bad] for slot in self.findings.value(node).active]
        samples = {int(sample) for each in labels for sample in each[:1]}
        return next((token for own, token in self.runs[run] if own in samples), self.runs[run][0][1])

    def _same_place(self, node: fx.Node, bad: Tensor, token: int) -> bool:
        """Whether those places are of the same place of the same input, which became tokens twice: the
        positions of ids, worked out from the ids, are added to the ids' own tokens."""
        space, places = self.findings.ledger.tokens.space_of, set[tuple[str, int]]()
        for slot in self.findings.value(node).active:
            own = torch.unique(codes_of(slot.labels).expand(bad.shape)[bad])
            places |= {(space(code).source, code - space(code).start) for code in own.tolist() if code >= 0}
        return places == {(space(token).source, token - space(token).start)}


class _Claims:
    """What labels deny at each node, and where what was moved must be known to see it."""

    def __init__(self, graph: fx.Graph, findings: Findings, runs: Sequence[Moved]) -> None:
        reach = Reach(findings, runs)
        weights = weights_of(graph, findings)
        excused = weights | scores_in_the_making(graph, findings, weights)
        self.denied: dict[fx.Node, Tensor] = {}
        """[run, ...], broadcasts to the tensor: places whose labels cannot reach what the run moves."""
        self.needed: dict[fx.Node, list[int]] = {}
        """The runs in which something later on depends on the node that may be denied."""
        for node in reversed(graph.nodes):
            slots = [] if node in excused else _claimed(findings.value(node))
            denied = reach.denied(slots) if slots else None
            if denied is not None and bool(denied.any()):
                self.denied[node] = denied
            own = {run for run in range(len(runs)) if denied is not None and bool(denied[run].any())}
            later = own.union(*(self.needed[user] for user in node.users))
            self.needed[node] = [] if node in weights else sorted(later)


def _states(nodes: Sequence[fx.Node], findings: Findings) -> frozenset[fx.Node]:
    """The results of recurrences that are not followed, products that sum all tokens into features without a
    map, and what is made of these until its places are tokens again: all tokens so far are in it."""
    told = {node for node, _ in carried(findings)}
    told |= findings.ledger.remarks.summaries.keys() - followed(findings)
    found: set[fx.Node] = set()
    for node in nodes:
        lies = any(slot.token_axes for slot in findings.value(node).active)
        several = isinstance(findings.values.get(node), tuple)
        if (node in told and several) or (
            not lies and (node in told or not found.isdisjoint(node.all_input_nodes))
        ):
            found.add(node)
    return frozenset(found)


def _claimed(value: Value) -> list[Slot]:
    """All slots that a tensor's tokens are named by, and those that gave way and are remembered."""
    gave_way, coarser = value.gave_way, value.gave_way.coarser
    if gave_way.shared_map or value.hidden.spectrum is not None or gave_way.single or value.lost:
        return []
    sides = [] if coarser is None else [coarser.slot, coarser.main]
    return [*value.active, *(slot for slot in sides if slot is not None)] if value.active else []


def _held(value: Any, altered: Any) -> Any:
    """The altered value with integers and booleans as they were; picked values are picked as before. What has
    another shape than before (a choice among boxes) is as it was."""
    if altered is None or (isinstance(value, Tensor) and not value.is_floating_point()):
        return None
    if isinstance(value, Tensor) and isinstance(altered, Tensor) and altered.shape != value.shape:
        return None
    if not isinstance(value, tuple | list):
        return altered if isinstance(value, Tensor) else None
    parts = [
        old if not isinstance(old, Tensor) or not old.is_floating_point() or old.shape != new.shape else new
        for old, new in zip(value, altered, strict=True)
    ]
    if len(parts) == 2 and _is_index(parts[1], parts[0]):
        parts[0] = parts[0] if torch.equal(value[1], altered[1]) else value[0]
    return type(value)(parts) if type(value) in (tuple, list) else tuple(parts)


def _is_at(slots: Sequence[Slot], sample: int, token: int, shape: Sequence[int]) -> Tensor | None:
    """Where a token of a sample stands, broadcasts to the shape; None if nowhere."""
    found = [
        (codes_of(slot.labels) == token) & ((own := samples_of(slot.labels)) == sample).logical_or(own < 0)
        for slot in slots
        if slot.strength == STRONG
    ]
    here = torch.stack(broadcast(*found)).any(0) if found else None
    return here if here is not None and bool(here.any()) else None


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_index(one: Any, other: Any) -> bool:
    """Whether one tensor may say where the other was picked."""
    pair = isinstance(one, Tensor) and isinstance(other, Tensor)
    return pair and one.dtype == torch.int64 and one.shape == other.shape
