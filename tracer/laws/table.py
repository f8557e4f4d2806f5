"""The laws in a table, and one case held against them: a graph, what was found in it, and an explanation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, fx

from fxplain.attention.gave_way import unnamed
from fxplain.attention.labelled import Labelled
from fxplain.laws import influence, step, support


@dataclass(frozen=True)
class Case:
    """What is held against a law."""

    labelled: Labelled
    bound: Mapping[str, Tensor]
    """A tensor for each placeholder."""
    target: Any = None
    """What was explained, and of which output; None where there is no explanation."""
    output: str | None = None
    relevance: Tensor | None = None
    """[batch, tokens]: the explanation."""
    notes: tuple[str, ...] = ()
    """Those of the explanation."""


class Violation(Protocol):
    """A place at which a law is broken. ``str()`` says where and what."""

    @property
    def node(self) -> fx.Node: ...

    @property
    def set_aside(self) -> bool:
        """Whether that is no failure: a note of the explanation says so, or it could not be looked at."""
        ...


@dataclass(frozen=True)
class Law:
    """Something that holds where labels mean what they say."""

    name: str
    claim: str
    """What was seen to hold, in a few words."""
    violations: Callable[[Case], Sequence[Violation]]
    explained: bool = False
    """Whether it is about an explanation, not the graph alone."""


@dataclass(frozen=True)
class Judgement:
    """How a law holds."""

    law: Law
    broken: tuple[str, ...]
    """Where it does not, a sentence each: node, module path and source line."""
    set_aside: tuple[str, ...]
    """What was not judged: a note of the explanation says so, or it could not be looked at."""


def _influence(case: Case) -> Sequence[Violation]:
    labelled = case.labelled
    told = unnamed(labelled)
    return influence.violations(labelled.captured, case.bound, labelled.findings, told=told)


def _support(case: Case) -> Sequence[Violation]:
    asked = case.target, case.output
    return support.violations(case.labelled, case.bound, *asked, case.relevance, case.notes)


LAWS = (
    Law("influence", "tokens that were moved changed no place that denies it", _influence),
    Law(
        "step", "every step gives what its map says", lambda case: step.violations(case.labelled, case.bound)
    ),
    Law(
        "support",
        "what moves the score has relevance or a note, and what has relevance moves it",
        _support,
        True,
    ),
)
"""All of them. A further law is a further line."""


def judgements(case: Case) -> Iterator[Judgement]:
    """How each law holds; of those about an explanation only where there is one."""
    for law in LAWS:
        if case.relevance is None and law.explained:
            continue
        found = law.violations(case)
        told = {one: [str(each) for each in found if each.set_aside is one] for one in (False, True)}
        broken, aside = (tuple(dict.fromkeys(told[one])) for one in (False, True))
        yield Judgement(law, broken, aside)


SHOWN = 3
"""How many places of one law a note or a line names."""


def shortened(places: Sequence[str]) -> tuple[str, ...]:
    """The first few, which matter most: what follows may only follow from them."""
    more = (f"and {len(places) - SHOWN} more",) if len(places) > SHOWN else ()
    return (*places[:SHOWN], *more)


def notes_of_laws(found: Sequence[Judgement]) -> tuple[str, ...]:
    """What a reader of an explanation must know: the laws that are broken, and where."""
    return tuple(
        f"the {judgement.law.name} law is broken: {place}"
        for judgement in found
        for place in shortened(judgement.broken)
    )
