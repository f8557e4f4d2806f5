"""Where inputs enter the graph: at themselves, at the first numbers that are made of ids, at births of their
tokens. A run that goes by them can be differentiated there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.births import Birth, born, living
from fxplain.attention.gave_way import unnamed
from fxplain.attention.labelled import Labelled
from fxplain.attention.unfollowed import unheard
from fxplain.labels.labels import codes_of


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor in which inputs enter, as one run had it: gradients can be taken of it."""

    node: fx.Node
    sources: frozenset[str]
    """The inputs that it is made of; empty for a birth."""
    tensor: Tensor
    birth: Birth | None = None
    own: Tensor | None = None
    """Which elements are of these inputs, where some are not: ids of a prompt that the model lays before
    them. Broadcasts to the tensor."""

    def of_own(self, values: Tensor) -> Tensor:
        """Values of its elements, zero at those that are not of its inputs."""
        return values if self.own is None else values * self.own.to(values.device)


class Entries:
    """Sees the values of one run as they are made, and keeps those at which inputs enter.

    Args:
        labelled: the graph with its labels.
        births: the tensors at which tokens are born.
        sources: inputs that are looked at themselves.
    """

    def __init__(self, labelled: Labelled, births: Iterable[Birth], sources: Collection[str]) -> None:
        self.findings = labelled.findings
        self.births = {birth.node: birth for birth in births}
        inputs = (p for p in labelled.captured.placeholders if p.kind == "input")
        self.paths = {p.node: p.path for p in inputs if p.path in sources}
        self.found: list[Entry] = []
        self._ids: dict[fx.Node, frozenset[str]] = {}
        """Integers and booleans, with the inputs that they are made of."""
        self._numbers: dict[fx.Node, frozenset[str]] = {}
        """Floats that are made of such inputs alone, likewise: coordinates until they are cut to ids."""

    def change(self, node: fx.Node, value: Any) -> Any:
        """The value to go on with."""
        if not isinstance(value, Tensor):
            return value
        if self._enters(node, value):
            sources = self._sources(node)
            value = self._kept(Entry(node, sources, _leaf(value), own=self._own(node, sources)))
        if node in self.births and value.is_floating_point():
            value = self._kept(Entry(node, frozenset(), _leaf(value), self.births[node]))
        return value

    def _kept(self, entry: Entry) -> Tensor:
        self.found.append(entry)
        return entry.tensor.clone()  # which may be written into

    def _own(self, node: fx.Node, sources: frozenset[str]) -> Tensor | None:
        """Where a tensor made of ids holds tokens of these inputs, or none; None where it does everywhere."""
        ledger = self.findings.ledger
        foreign = [s for s in ledger.tokens.spaces if s.filled or s.source not in sources]
        for slot in self.findings.value(node).active[:1]:
            codes = codes_of(slot.labels)
            inside = [(codes >= space.start) & (codes < space.start + space.size) for space in foreign]
            if any(bool(each.any()) for each in inside):
                return ~torch.stack(inside).any(0)
        return None

    def _sources(self, node: fx.Node) -> frozenset[str]:
        own = {self.paths[node.name]} if node.name in self.paths else set()
        return frozenset(own).union(*(self._ids.get(used, frozenset()) for used in node.all_input_nodes))

    def _behind_numbers(self, node: fx.Node) -> frozenset[str]:
        """The inputs that a tensor is made of by floats alone; none where tokens of others are in it."""
        before = [used for used in node.all_input_nodes if self.findings.value(used).from_input]
        known = [self._numbers[used] for used in before if used in self._numbers]
        return frozenset().union(*known) if len(known) == len(before) else frozenset()

    def _enters(self, node: fx.Node, value: Tensor) -> bool:
        """Whether numbers are an input, or made of ids and of nothing else that comes from an input: what
        ids only pick or mask enters elsewhere."""
        sources = self._sources(node)
        if not value.is_floating_point():
            compared = value.dtype == torch.bool and node.op != "placeholder"  # a mask holds no ids
            self._ids[node] = frozenset() if compared else sources | self._behind_numbers(node)
            return False
        numbers = sources if node.op == "placeholder" else self._behind_numbers(node)
        if numbers:
            self._numbers[node] = numbers
        others = (used for used in node.all_input_nodes if used not in self._ids)
        return bool(sources) and not any(self.findings.value(used).from_input for used in others)


def _leaf(value: Tensor) -> Tensor:
    return value if value.requires_grad else value.detach().requires_grad_()


def gradients_at(score: Tensor, entries: Iterable[Entry]) -> list[Tensor]:
    """The gradient of a score to each entry, zero where it does not depend on it; the graph is kept."""
    tensors = [entry.tensor for entry in entries]
    found = torch.autograd.grad(score, tensors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g.detach() for t, g in zip(tensors, found, strict=True)]


def where_missing(labelled: Labelled, bound: Mapping[str, Tensor]) -> Entries | None:
    """The entries that tell how much of the score no relevance does: where an input has no tokens of its own,
    or something is not followed; else None, for gradients before the first attention are not free."""
    missing, classified = unnamed(labelled), labelled.classified
    steps = {site.index for site in classified.sites}
    silent = missing or unheard(labelled.findings, classified.renumber, steps)
    return Entries(labelled, born(labelled, bound, living(labelled)), missing) if silent else None
