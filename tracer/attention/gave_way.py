"""Where what an input holds goes into the tokens of others, and whether its places are told apart there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled
from fxplain.capture.placeholder import Placeholder
from fxplain.labels.call import aten, op_name
from fxplain.labels.flows import Kernel, Site
from fxplain.labels.labels import DORMANT, STRONG, Slot, align, broadcast, codes_of, encode, samples_of
from fxplain.where import module_path, source_line

ADDING = frozenset({"add", "add_", "sub", "sub_", "rsub"})
CASTING = frozenset(aten("to _to_copy type_as"))
LOWEST_SCORE = -1e3
"""What is lower masks."""


@dataclass(frozen=True)
class GaveWay:
    """An operation at which the labels of an input end, for those of other tokens go on."""

    source: str
    """The input."""
    node: fx.Node
    to: tuple[str, ...]
    """The inputs and parameters whose tokens go on; none where nothing does."""
    evenly: bool
    """Whether each of its places goes to one token of a single other slot, or the only one to all of them."""
    of_tokens: bool = False
    """Whether its places were tokens, and go into those of others."""

    def __str__(self) -> str:
        where = f"{module_path(self.node) or 'the model'} ({source_line(self.node) or self.node.name})"
        if not self.to:
            return f"it becomes part of no token in {where}"
        added = op_name(self.node).removeprefix("aten::") in ADDING
        verb = "is added to" if added else "goes into"
        return f"it {verb} the tokens of {', '.join(self.to)} in {where}"


def unnamed(labelled: Labelled) -> tuple[str, ...]:
    """Inputs that reach an output without tokens of their own, in order: what they hold came to tokens of
    others, or never was made tokens of."""
    named = {space.source for space in labelled.classified.spaces}
    return tuple(source for source in data_of(labelled) if named and source not in named)


def data_of(labelled: Labelled) -> tuple[str, ...]:
    """The inputs that hold data, in order: numbers, ids that were looked up, or integers that are reckoned
    with. Masks hold none, and what only makes scores, as biases do, none that relevance would be of."""
    scores = only_scores(labelled)
    return tuple(p.path for p, node in _holding_data(labelled) if node not in scores)


def weighing(labelled: Labelled) -> tuple[str, ...]:
    """The inputs without tokens that only make weights between tokens (distances, boxes), without masks."""
    scores, named = only_scores(labelled), {space.source for space in labelled.classified.spaces}
    inputs = (p.path for p, node in _holding_data(labelled) if node in scores and not _masks(labelled, p))
    return tuple(path for path in inputs if named and path not in named)


def _holding_data(labelled: Labelled) -> list[tuple[Placeholder, fx.Node]]:
    ledger, findings = labelled.findings.ledger, labelled.findings
    data = {root.name for root, *_ in ledger.elements.ranges if root.is_input and root.strength == STRONG}
    data |= {space.source for space in ledger.spaces if space.origin == "input" and not space.filled}
    nodes = {node.name: node for node in findings.values if node.op == "placeholder"}
    inputs = [(p, nodes[p.node]) for p in labelled.captured.placeholders if p.kind == "input"]
    return [
        (p, node)
        for p, node in inputs
        if node.users and (p.path in data or (_reckoned_with(node) and not _masks(labelled, p)))
    ]


def _masks(labelled: Labelled, placeholder: Placeholder) -> bool:
    """Whether the numbers of an input are those of a mask: 0, 1, or so low that a softmax makes 0 of them."""
    captured = labelled.captured
    paths = [tensor.path for tensor in captured.layout.tensors]
    if placeholder.path not in paths or len(captured.example) != len(paths):
        return True
    values = captured.example[paths.index(placeholder.path)]
    return bool(((values == 0) | (values == 1) | (values < LOWEST_SCORE)).all())


def _reckoned_with(node: fx.Node) -> bool:
    """Whether integers, one for each of several places, become floats; comparisons make masks of them."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.is_floating_point() or value.ndim < 2:
        return False
    integers = [node]
    for used in integers:  # which grows
        for user in used.users:
            made = user.meta.get("val")
            if not isinstance(made, Tensor) or made.dtype == torch.bool or user in integers:
                continue
            if not made.is_floating_point():
                integers.append(user)
            elif op_name(user) in CASTING or torch.Tag.pointwise in getattr(user.target, "tags", ()):
                return True  # others only pick by integers
    return False


def only_scores(labelled: Labelled) -> frozenset[fx.Node]:
    """The tensors that only make weights between tokens: every way from them leads into the maps of
    attentions that are followed."""
    sites = {part.node: part for site in labelled.classified.sites for part in (site, *site.map.parts)}
    maps = {site.map.held for site in sites.values() if site.attends}
    found: set[fx.Node] = set()
    for node in reversed(labelled.captured.graph.graph.nodes):
        users = [user for user in node.users if user not in found and not _weighs(sites.get(user), node)]
        if node in maps or (node.users and not users):
            found.add(node)
    return frozenset(found)


def _weighs(site: Site | None, node: fx.Node) -> bool:
    """Whether a tensor goes into a fused attention's map and not into its values."""
    return site is not None and isinstance(site.map, Kernel) and node is not site.map.value


def endings(labelled: Labelled, source: str, tokens: Tensor | None = None) -> Iterator[GaveWay]:
    """All operations at which labels of an input end, in order.

    Args:
        labelled: the graph with its labels.
        source: the input.
        tokens: [token] which tokens are looked for, as the labelling run numbers them; None: elements of the
            input and tokens of it that nothing uses.
    """
    scores = only_scores(labelled)
    ending = _Ending(labelled, source, tokens)
    for node in labelled.captured.graph.graph.nodes:
        found = ending.at(node) if node.op == "call_function" and node not in scores else None
        if found is not None:
            yield found


class _Ending:
    """The elements of an input, and some of its tokens."""

    def __init__(self, labelled: Labelled, source: str, tokens: Tensor | None) -> None:
        self.findings, self.source = labelled.findings, source
        ledger, renumber = labelled.findings.ledger, labelled.classified.renumber
        self.elements = [
            (first, last)
            for root, first, last in ledger.elements.ranges
            if root.is_input and root.name == source and tokens is None
        ]
        if tokens is None:
            tokens = torch.zeros(len(renumber) + 1, dtype=torch.bool)
            for space in ledger.spaces:
                if space.source == source:
                    own = slice(space.start, space.start + space.size)
                    tokens[own] = renumber[own] < 0
        self.tokens = tokens
        self.sites = {site.node: site for site in labelled.classified.sites}

    def inside(self, slot: Slot) -> bool:
        """Whether a slot names one of them."""
        codes = codes_of(slot.labels)
        if slot.strength > DORMANT:
            return bool(self.tokens[codes[codes >= 0]].any())
        return any(bool(((codes >= first) & (codes < last)).any()) for first, last in self.elements)

    def at(self, node: fx.Node) -> GaveWay | None:
        """How their labels end at an operation; None if they do not, or nothing was there."""
        before = [part for used in node.all_input_nodes for part in self.findings.parts(used)]
        own = [slot for part in before for slot in part.slots if self.inside(slot)]
        after = self.findings.parts(node)
        if not own or any(self.inside(slot) for part in after for slot in part.slots):
            return None
        site = self.sites.get(node)
        if site is not None and self.inside(site.cols):
            return None  # the step takes them in
        kept = [slot for part in after for slot in part.active]
        ledger = self.findings.ledger
        tokens = {int(code) for slot in kept for code in torch.unique(codes_of(slot.labels)) if code >= 0}
        to = tuple(dict.fromkeys(ledger.source_of(token) for token in sorted(tokens)))
        evenly = len(kept) == 1 and all(_evenly(slot, kept[0]) for slot in own)
        valued = site is not None and site.attends  # what an attention weighs has the names of its keys
        tokens_end = bool(to) and not valued and any(slot.strength > DORMANT for slot in own)
        return GaveWay(self.source, node, to, evenly, tokens_end)


def _evenly(slot: Slot, kept: Slot) -> bool:
    """Whether each token of the one goes into a token of its own of the other, or the only one of a sample
    into all. Elements that are no tokens yet may go into the same ones together."""
    if not slot.token_axes:
        return True
    ndim = max(slot.labels.ndim, kept.labels.ndim)
    try:
        one, other = broadcast(align(slot, ndim).labels, align(kept, ndim).labels)
    except RuntimeError:
        return False
    one, other = (  # what is of no known sample is of that which it meets
        torch.where(samples_of(labels) < 0, encode(samples_of(met), codes_of(labels)), labels)
        for labels, met in ((one, other), (other, one))
    )
    both = torch.stack([one.reshape(-1), other.reshape(-1)])
    pairs = torch.unique(both[:, (codes_of(both) >= 0).all(0)], dim=1)
    if slot.strength == DORMANT:
        return _in_blocks(pairs)
    forth, back = (torch.unique(line, return_counts=True)[1] for line in pairs)
    return bool((forth == 1).all()) and bool((back == 1).all())


def _in_blocks(pairs: Tensor) -> bool:
    """Whether places that go into one token go into the same ones throughout."""
    (_, place), (tokens, token) = (torch.unique(line, return_inverse=True) for line in pairs)
    numbers = torch.rand(len(tokens), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sums = torch.zeros(int(place.max()) + 1 if len(place) else 0, dtype=torch.float64)
    sums.index_add_(0, place, numbers[token])
    low, high = (
        torch.zeros_like(numbers).scatter_reduce(0, token, sums[place], how, include_self=False)
        for how in ("amin", "amax")
    )
    return bool(((high - low).abs() < 1e-9).all())
