"""The support law: what the score depends on belongs to tokens that the readout can reach.

The graph is run once with gradients from the inputs on. Numbers that move the score must feed tokens of their
input, where these are born, that steps lead to from the rows that are read. Ids have no gradient; the first
numbers that are made of them have one. An input without tokens of its own breaks no law where its places are
told apart in another's tokens, as a note says then. Nor does what goes by weights between tokens alone, or
through what notes say is not followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.births import Birth, born, living
from fxplain.attention.gave_way import data_of, endings, only_scores, unnamed
from fxplain.attention.labelled import Labelled
from fxplain.attention.notes import tells_of
from fxplain.attention.unfollowed import carried
from fxplain.labels.labels import codes_of, samples_of
from fxplain.laws.reach import reached
from fxplain.laws.slopes import Slopes, slopes_of
from fxplain.run.entries import Entries, Entry, gradients_at
from fxplain.where import place_of

LEAST = 1e-5
"""The smallest relevance that counts, beside the largest."""

BESIDE = "{places} elements of {source} move the score ({share:.0%} of gradient x input) and are of no token"
UNREACHED = "{places} tokens of {source} move the score ({share:.0%} of gradient x input) out of its reach"
ASTRAY = "{places} tokens of {source} have relevance and are out of the score's reach"
IDLE = "{places} tokens of {source} have relevance and do not move the score"


@dataclass(frozen=True)
class Violation:
    """Places of an input that move the score while relevance cannot reach them, or the reverse."""

    source: str
    """The input."""
    node: fx.Node
    """Where their labels end, or else where they begin."""
    places: int
    """How many elements or tokens, in all samples."""
    share: float
    """Which part they have of all inputs' gradient times input."""
    what: str
    """What is wrong, a sentence with places for all this."""
    set_aside: bool = False
    """Whether a note of the explanation says so, with the share."""

    def __str__(self) -> str:
        told = self.what.format(source=self.source, places=self.places, share=self.share)
        return f"{place_of(self.node)}: {told}"


def violations(
    labelled: Labelled,
    bound: Mapping[str, Tensor],
    target: Any = None,
    output: str | None = None,
    relevance: Tensor | None = None,
    notes: Sequence[str] = (),
) -> tuple[Violation, ...]:
    """Where the support law is broken, input by input, for one score of each sample.

    Args:
        labelled, bound: the graph with its labels, and a tensor for each placeholder.
        target, output: what is explained, as for :meth:`fxplain.Traced.explain`.
        relevance: [batch, tokens] of an explanation of it, to be held against what its tokens do.
        notes: those of the explanation. What they tell of an input is set aside.
    """
    sources = data_of(labelled)
    if not sources:
        return ()
    law = _Law(labelled, bound, target, output, notes)
    found = [each for source in sources for each in law.of(source)]
    if relevance is not None:
        found += law.of_relevance(relevance)
    return tuple(found)


class _Law:
    """One prediction, held against its labels."""

    def __init__(
        self,
        labelled: Labelled,
        bound: Mapping[str, Tensor],
        target: Any,
        output: str | None,
        notes: Sequence[str],
    ) -> None:
        self.labelled, self.bound, self.target, self.output = labelled, bound, target, output
        self.notes = notes
        self.findings, self.sources, self.unnamed = labelled.findings, data_of(labelled), unnamed(labelled)
        self.born = born(labelled, bound, living(labelled))
        self.slopes = self._run(frozenset())
        self.reached = reached(labelled, self.slopes.resolved)
        own = [place for place, entry in enumerate(self.slopes.entries) if entry.sources]
        self.total = sum(float(self.slopes.weight(place).sum()) for place in own) or 1.0

    def _run(self, held: frozenset[fx.Node], born: Sequence[Birth] | None = None) -> Slopes:
        entries = Entries(self.labelled, self.born if born is None else born, self.sources)
        return slopes_of(self.labelled, self.bound, entries, (self.target, self.output), held)

    @cached_property
    def held(self) -> Slopes:
        """Slopes where nothing passes by weights between tokens, nor through what is not followed."""
        nodes = {node for node, _ in carried(self.findings)} | set(self.findings.ledger.remarks.summaries)
        return self._run(only_scores(self.labelled) | nodes)

    def of(self, source: str) -> Iterator[Violation]:
        """What is wrong with one input."""
        if source in self.unnamed:
            yield from self._of_unnamed(source)
            return
        bad = [(place, self.slopes.moving(place) & ~fed) for place, fed in self._fed(source)]
        yield from self._found(source, bad, None, BESIDE)
        births = [
            (place, self.slopes.moving(place) & self._unreached(entry.birth, entry.tensor))
            for place, entry in enumerate(self.slopes.entries)
            if entry.birth is not None
        ]
        own = _tokens_of(self.labelled, source)
        births = [(p, bad & self._is_of(self.slopes.entries[p], own)) for p, bad in births]
        yield from self._found(source, births, own, UNREACHED)

    def _of_unnamed(self, source: str) -> Iterator[Violation]:
        """An input without tokens of its own must give way evenly wherever it moves the score: a note does
        not say that tokens of it which were told apart are so no longer."""
        ways = list(endings(self.labelled, source))
        if ways and all(way.evenly for way in ways):
            return
        odd = next((way.node for way in ways if way.of_tokens and not way.evenly), None)
        bad = [(place, self.slopes.moving(place)) for place in self.slopes.at(source)]
        for each in self._found(source, bad, None, BESIDE, odd):
            yield replace(each, set_aside=each.set_aside and odd is None)

    def _fed(self, source: str) -> Iterator[tuple[int, Tensor]]:
        """For each entry of an input: which of its elements feed tokens of it."""
        own = _tokens_of(self.labelled, source)
        places = self.slopes.at(source)
        total = torch.zeros(())
        with torch.enable_grad():
            for entry in self.slopes.entries:
                if entry.birth is not None:
                    good = self._is_of(entry, own)
                    noise = torch.rand(entry.tensor.shape, generator=torch.Generator().manual_seed(0))
                    total = total + (entry.tensor * (noise * good.cpu()).to(entry.tensor)).sum().cpu()
        if not total.requires_grad:
            yield from (
                (place, torch.zeros_like(self.slopes.entries[place].tensor, dtype=torch.bool))
                for place in places
            )
            return
        fed = gradients_at(total, [self.slopes.entries[place] for place in places])
        yield from ((place, gradient != 0) for place, gradient in zip(places, fed, strict=True))

    def _is_of(self, entry: Entry, own: Tensor) -> Tensor:
        """Where an entry's tokens are born that are some input's."""
        assert entry.birth is not None
        tokens = entry.birth.tokens.expand(entry.tensor.shape)
        return (own[tokens.clamp_min(0)] & (tokens >= 0)).to(entry.tensor.device)

    def _unreached(self, birth: Birth, tensor: Tensor) -> Tensor:
        tokens, samples = birth.tokens.expand(tensor.shape), birth.samples.expand(tensor.shape)
        samples = torch.where(samples >= 0, samples, len(self.reached) - 1)
        return ((tokens >= 0) & ~self.reached[samples, tokens.clamp_min(0)]).to(tensor.device)

    def _found(
        self,
        source: str,
        bad: list[tuple[int, Tensor]],
        own: Tensor | None,
        what: str,
        node: fx.Node | None = None,
    ) -> Iterator[Violation]:
        """One violation for all elements that are still bad when weights and what is told are held."""
        bad = [(place, mask) for place, mask in bad if bool(mask.any())]
        if not bad:
            return
        bad = [(place, mask & (self.held.gradients[place] != 0)) for place, mask in bad]
        share = sum(float(self.slopes.weight(place)[mask].sum()) for place, mask in bad) / self.total
        count, tokens = 0, torch.zeros(len(self.reached[0]) + 1, dtype=torch.bool)
        for place, mask in bad:
            entry = self.slopes.entries[place]
            if entry.birth is not None and own is not None:
                tokens[entry.birth.tokens.expand(mask.shape)[mask.cpu()]] = True
            else:
                count += int((mask if entry.node.op == "placeholder" else mask.any(-1)).sum())
        count += int(tokens.sum())
        if count:
            first = self.slopes.entries[bad[0][0]].node
            if own is not None or first.op == "placeholder":
                ways = (way.node for way in endings(self.labelled, source, None if own is None else tokens))
                first = next(ways, first)
            yield Violation(source, node or first, count, share, what, tells_of(self.notes, source))

    def of_relevance(self, relevance: Tensor) -> Iterator[Violation]:
        """Tokens of inputs that have relevance, though they cannot be reached, or do nothing."""
        renumber = self.labelled.classified.renumber
        for source in self.sources:
            own = _tokens_of(self.labelled, source)[:-1]
            there = renumber >= 0
            relevant = torch.zeros(len(own), dtype=torch.bool)
            high = relevance.detach().abs().amax(0).cpu()
            relevant[there] = high[renumber[there]] > LEAST * high.max()
            relevant &= own
            astray = relevant & ~self.reached.any(0)
            idle = relevant & ~astray & ~_moved(self.slopes, own)
            if bool(idle.any()):  # what a token is may be put in its place after its birth
                idle &= ~_moved(self._run(frozenset(), list(self._places(idle))), own)
            for tokens, what in ((astray, ASTRAY), (idle, IDLE)):
                if bool(tokens.any()):
                    node = next(
                        b.node for b in self.born if bool(torch.isin(b.tokens, tokens.nonzero()).any())
                    )
                    yield Violation(source, node, int(tokens.sum()), 0.0, what)

    def _places(self, tokens: Tensor) -> Iterator[Birth]:
        """All tensors that hold some tokens, and where."""
        for node in self.labelled.captured.graph.graph.nodes:
            for slot in self.findings.value(node).active[:1]:
                codes = codes_of(slot.labels)
                inside = tokens[codes.clamp_min(0)] & (codes >= 0)
                if bool(inside.any()):
                    yield Birth(node, torch.where(inside, codes, -1), samples_of(slot.labels))


def _moved(slopes: Slopes, own: Tensor) -> Tensor:
    """[token]: whether a token moves the score where it is born, by its gradient."""
    moved = torch.zeros_like(own)
    for gradient, entry in zip(slopes.gradients, slopes.entries, strict=True):
        if entry.birth is not None:
            tokens = entry.birth.tokens.expand(gradient.shape)[(gradient != 0).cpu()]
            moved[tokens[tokens >= 0]] = True
    return moved


def _tokens_of(labelled: Labelled, source: str) -> Tensor:
    """[token]: the living ones of one input; none after the last."""
    found = torch.zeros(len(labelled.classified.renumber) + 1, dtype=torch.bool)
    own = living(labelled)
    for space in labelled.findings.ledger.tokens.spaces:
        if space.source == source:
            inside = slice(space.start, space.start + space.size)
            found[inside] = own[inside]
    return found
