"""The influence law: perturb a token where it is born, and no place changes whose label cannot reach it.

The graph is run beside itself, a few times with one token moved each. Integers, booleans and random draws
stay as they were in the first run, so routing and masks do not move. Nor do weights between tokens and
what is made of these alone, so that what moves is what tokens hold. A place that changes although its
label denies it is put back, so that what comes after is held against its own claims alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.unfollowed import followed
from fxplain.capture.captured import Captured
from fxplain.capture.passes.clean import draws
from fxplain.capture.verify import tolerance
from fxplain.labels.findings import Findings
from fxplain.labels.labels import STRONG, Slot, Value, codes_of, samples_of
from fxplain.laws.reach import Reach
from fxplain.run.replay import NO_SURROGATES, run_node
from fxplain.where import place_of

MOST_RUNS = 8
"""Tokens that are moved, one in each run."""
APIECE = 2
"""Of these at most so many of one input."""


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

    def __str__(self) -> str:
        moved = f"{self.source}[{self.token}] moves {self.share:.0%} of it, by {self.size:.2g}"
        return f"{place_of(self.node)}: {moved}, and its labels say that it cannot"


def violations(
    captured: Captured, bound: Mapping[str, Tensor], findings: Findings, most: int = MOST_RUNS
) -> tuple[Violation, ...]:
    """Where the influence law is broken, in order of execution; one for each node and token.

    Args:
        captured, bound, findings: the graph, a tensor for each placeholder, and the labels on these tensors.
        most: how many tokens are moved, each in a forward pass of its own.
    """
    asked = _asked(findings, most)
    if not asked:
        return ()
    return _Run(captured, bound, findings, asked).run()


def _asked(findings: Findings, most: int) -> list[tuple[int, int]]:
    """The tokens to move, as (sample, token): the first and the last of every input, samples in turn."""
    spaces = [space for space in findings.ledger.spaces if space.origin == "input" and not space.filled]
    tokens = [t for s in spaces for t in dict.fromkeys((s.start, s.start + s.size - 1)[:APIECE])]
    return [(place % findings.batch, token) for place, token in enumerate(tokens[:most])]


class _Run:
    """One pass over the graph with the values of the first run, and what differs in the others."""

    def __init__(
        self,
        captured: Captured,
        bound: Mapping[str, Tensor],
        findings: Findings,
        asked: Sequence[tuple[int, int]],
    ) -> None:
        self.captured, self.bound, self.findings, self.asked = captured, bound, findings, asked
        self.reach = Reach(findings, asked)
        self.real: dict[fx.Node, Any] = {}
        self.moved: list[dict[fx.Node, Any]] = [{} for _ in asked]
        self.found: list[Violation] = []
        self.silent = followed(findings) | set(findings.ledger.unfollowed) | set(findings.ledger.summaries)
        self.noise = torch.Generator().manual_seed(0)
        self.scores = _scores(captured.graph.graph, findings)
        self.least = 10 * tolerance([t for t in bound.values() if t.is_floating_point()])

    def run(self) -> tuple[Violation, ...]:
        nodes = list(self.captured.graph.graph.nodes)
        last_use = {used: node for node in nodes for used in node.all_input_nodes}
        with torch.no_grad():
            for node in nodes:
                if node.op == "output":
                    break
                self._step(node)
                for used in node.all_input_nodes:
                    if last_use[used] is node:
                        for values in (self.real, *self.moved):
                            values.pop(used, None)
        return tuple(self.found)

    def _step(self, node: fx.Node) -> None:
        alters = [self._altered(node, values) for values in self.moved]
        value = run_node(self.captured, self.bound, node, self.real, NO_SURROGATES)
        self.real[node] = value.clone() if isinstance(value, Tensor) else value
        for question, altered in enumerate(alters):
            changed = self._held(node, value, altered)
            if isinstance(value, Tensor) and value.is_floating_point():
                changed = self._judged(node, value, self._born(node, value, changed, question), question)
            if changed is not None:
                self.moved[question][node] = changed

    def _altered(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """The node's value where something differs from the first run; None where nothing does."""
        if node.op != "call_function" or draws(node) or not any(n in values for n in node.all_input_nodes):
            return None
        real = {n: values.get(n, self.real[n]) for n in node.all_input_nodes}
        real = {n: v.clone() if isinstance(v, Tensor) and _writes(node) else v for n, v in real.items()}
        return run_node(self.captured, self.bound, node, real, NO_SURROGATES)

    def _held(self, node: fx.Node, value: Any, altered: Any) -> Any:
        """The altered value with integers and booleans as they were; picked values are picked as before."""
        if altered is None or (isinstance(value, Tensor) and not value.is_floating_point()):
            return None
        if not isinstance(value, tuple | list):
            return altered if isinstance(value, Tensor) else None
        parts = [
            old if not isinstance(old, Tensor) or not old.is_floating_point() else new
            for old, new in zip(value, altered, strict=True)
        ]
        if len(parts) == 2 and _is_index(parts[1], parts[0]):
            parts[0] = parts[0] if _same(value[1], altered[1]) else value[0]
        return type(value)(parts) if type(value) in (tuple, list) else tuple(parts)

    def _born(self, node: fx.Node, value: Tensor, changed: Any, question: int) -> Any:
        """With noise at the places where the token that is asked about is born."""
        sample, token = self.asked[question]
        slots = self.findings.value(node).active
        here = _is_at(slots, sample, token, value.shape)
        older = (
            s for used in node.all_input_nodes for part in self.findings.parts(used) for s in part.active
        )
        if here is None or any(bool((codes_of(slot.labels) == token).any()) for slot in older):
            return changed
        noise = torch.randn(value.shape, generator=self.noise).to(value)
        size = value.float().abs().mean().clamp_min(0.1).to(value.dtype)
        return (value if changed is None else changed) + noise * size * here.to(value.device)

    def _judged(self, node: fx.Node, value: Tensor, changed: Any, question: int) -> Tensor | None:
        """What changed, where the labels admit it; the rest is put back, and noted."""
        if changed is None or node in self.scores:
            return None
        slots = _claimed(self.findings.value(node))
        if not slots or not value.numel():
            return changed  # type: ignore[no-any-return]
        largest = float(value.abs().max().clamp_min(1e-3)) if bool(value.isfinite().all()) else 1.0
        gap = (changed - value).abs()
        moved = (gap > self.least * largest).cpu()
        pairs = [self.reach.allowed(slot, value.shape) for slot in slots]
        named = torch.stack([inside for _, inside in pairs]).any(0)
        allowed = torch.stack([reach[question] for reach, _ in pairs]).any(0)
        bad = moved & named & ~allowed
        if not bool(bad.any()):
            return changed  # type: ignore[no-any-return]
        if node not in self.silent:
            token = self.asked[question][1]
            space = self.findings.ledger.space_of(token)
            size = float(gap.cpu()[bad].max()) / largest
            share = float(bad.float().mean())
            self.found.append(Violation(node, space.source, token - space.start, share, size))
        return torch.where(bad.to(value.device), value, changed)


def _claimed(value: Value) -> list[Slot]:
    """All slots that a tensor's tokens are named by, and those that gave way and are remembered."""
    if value.tied or value.spectrum is not None or value.asked or value.lost:
        return []
    beside = [] if value.beside is None else [value.beside.slot, value.beside.main]
    return [*value.active, *(slot for slot in beside if slot is not None)]


def _scores(graph: fx.Graph, findings: Findings) -> set[fx.Node]:
    """The tensors that hold weights between tokens, and what is made of these alone: statistics of rows.

    What a softmax takes of a row is nothing that its tokens hold; what the weights do is the site's claim.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        several = any(len({slot.token_axes for slot in part.active}) > 1 for part in findings.parts(node))
        labelled = [used for used in node.all_input_nodes if any(p.labelled for p in findings.parts(used))]
        if several or (labelled and all(used in found for used in labelled)):
            found.add(node)
    return found


def _is_at(slots: Sequence[Slot], sample: int, token: int, shape: Sequence[int]) -> Tensor | None:
    """Where a token of a sample stands, [*shape]; None if nowhere."""
    found = torch.zeros(tuple(shape), dtype=torch.bool)
    for slot in (slot for slot in slots if slot.strength == STRONG):
        labels = slot.labels[(None,) * (len(shape) - slot.labels.ndim)]
        samples = samples_of(labels)
        found |= (codes_of(labels) == token) & ((samples == sample) | (samples < 0))
    return found if bool(found.any()) else None


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_index(one: Any, other: Any) -> bool:
    """Whether one tensor may say where the other was picked."""
    pair = isinstance(one, Tensor) and isinstance(other, Tensor)
    return pair and one.dtype == torch.int64 and one.shape == other.shape


def _same(one: Any, other: Any) -> bool:
    return bool(torch.equal(one, other))
