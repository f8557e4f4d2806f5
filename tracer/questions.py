"""What was asked, in words: what the axes of an output are, and what one sample's score is a score of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

Texts = Callable[[str, int], str | None]
"""The text of a token space up to and with one of its places, where it is known."""
AxisKind = Literal["tokens", "queries", "places", "features"]


@dataclass(frozen=True)
class Axis:
    """One axis of one sample's output, read off its token labels.

    Args:
        kind: ``tokens`` of an input or made of one, learned ``queries``, ``places`` of a picture, or
            ``features`` (classes, words, coordinates).
        space: the token space that the axis ranges over; empty for features, and for tokens in no row.
        size: how many places it has.
        first: the token of the space that stands at place 0.
    """

    kind: AxisKind
    space: str
    size: int
    first: int = 0


QuestionKind = Literal[
    "next token", "word", "class", "query", "region", "place", "coordinate", "function", "combined"
]


@dataclass(frozen=True)
class Part:
    """One part of a question about a sum.

    Args:
        weight: what its score is multiplied by.
        log: whether it is the logarithm of the probability that is summed, and not the score.
        question: what it asks.
    """

    weight: float
    log: bool
    question: Question

    def words(self, texts: Texts) -> str:
        """In words."""
        said = _WORDS[self.question.kind](self.question, texts)
        said = said.replace("the score of", "the log-probability of", 1) if self.log else said
        return said if abs(self.weight) == 1 else f"{abs(self.weight):g} times {said}"


@dataclass(frozen=True)
class Spot:
    """Where on a picture lies what is asked about: a box, or places of an output.

    Args:
        box: left, top, right and bottom, as parts of the picture's width and height; empty for places.
        grid: rows and columns of the output that the places are of.
        runs: row by row how many places are not meant, then how many are, then how many are not, and so on.
    """

    box: tuple[float, ...] = ()
    grid: tuple[int, ...] = ()
    runs: tuple[int, ...] = ()

    @staticmethod
    def of_places(mask: Tensor) -> Spot:
        """The places at which a mask [row, column] is true.

        Example:
            >>> spot = Spot.of_places(torch.tensor([[False, True], [True, False]]))
            >>> spot.runs, spot.places
            ((1, 2, 1), 2)
        """
        flat = mask.reshape(-1).to("cpu", torch.int8)
        changes = (torch.diff(flat).nonzero().reshape(-1) + 1).tolist()
        edges = [0, *([0] if bool(flat[:1].any()) else []), *changes, len(flat)]
        runs = tuple(after - before for before, after in pairwise(edges))
        return Spot(grid=tuple(mask.shape), runs=runs)

    @property
    def places(self) -> int:
        """How many places it has; 0 for a box."""
        return sum(self.runs[1::2])

    def mask(self) -> Tensor:
        """[row, column]: true at its places."""
        flags = torch.tensor([place % 2 == 1 for place in range(len(self.runs))])
        return flags.repeat_interleave(torch.tensor(self.runs)).reshape(self.grid)


@dataclass(frozen=True)
class Question:
    """What the score of one sample answers. ``str(question)`` says it in words.

    Args:
        kind: the next token after a place, a word at a place, a class, a class as one of several queries (or
            tokens) sees it, a class over a region of a picture or at one place of it, a plain number, the
            user's own function, or a sum of several of these.
        output: name of the output.
        index: the place in one sample's output; empty for a function.
        axes: what the axes of the output are.
        name: of the class or word, where one is known.
        largest: over how many values it is the largest, where nobody named it; else 0.
        probability: by a softmax over classes or words; None where that means nothing.
        spot: where on the picture it lies, if that is known: a detection's box, the places of a region.
        about: more words (a box; the name of a function).
        parts: of a sum.

    Example:
        >>> str(Question("class", "logits", (3,), (Axis("features", "", 10),), name="cat", probability=0.971))
        "the score of class 3 'cat', probability 0.97"
    """

    kind: QuestionKind
    output: str
    index: tuple[int, ...] = ()
    axes: tuple[Axis, ...] = ()
    name: str = ""
    largest: int = 0
    probability: float | None = None
    spot: Spot | None = None
    about: str = ""
    parts: tuple[Part, ...] = ()

    def __str__(self) -> str:
        return self.words()

    def named(self, names: Mapping[int, str] | Sequence[str]) -> Question:
        """The same with a name for the class or word, if it has none yet and one is known."""
        if self.parts:
            named = (replace(part, question=part.question.named(names)) for part in self.parts)
            return replace(self, parts=tuple(named))
        if self.name or not self.index or self.kind in ("coordinate", "function"):
            return self
        label = self.label
        known = names.get(label) if isinstance(names, Mapping) else dict(enumerate(names)).get(label)
        return self if known is None else replace(self, name=str(known))

    @property
    def label(self) -> int:
        """The index of the class or word."""
        return self.index[0] if self.kind in ("region", "place") else self.index[-1]

    def words(self, texts: Texts = lambda space, place: None) -> str:
        """In words."""
        said = _WORDS[self.kind](self, texts)
        chosen = f", the largest of {self.largest}" if self.largest > 1 else ""
        likely = "" if self.probability is None else f", probability {_share(self.probability)}"
        return (
            said
            + (f", {self.about}" if self.about and self.kind not in ("function", "region") else "")
            + likely
            + chosen
        )

    def _label(self, what: str) -> str:
        return f"{what} {self.label}" + (f" {self.name!r}" if self.name else "")

    def _token(self) -> str:
        return f"{self.name!r}" if self.name else f"token {self.label}"


def _share(probability: float) -> str:
    if probability >= 0.995:
        return "over 0.99"
    return f"{probability:.2f}" if probability >= 0.005 else f"{probability:.2g}"


def _next_token(question: Question, texts: Texts) -> str:
    place, axis = question.index[0], question.axes[0]
    before = texts(axis.space, place + axis.first)
    after = f" after {before!r}" if before else f" after {_where(axis, place, texts)}" if axis.space else ""
    return f"the score of {question._token()} as the next token{after}"


def _word(question: Question, texts: Texts) -> str:
    return f"the score of {question._token()} at {_where(question.axes[0], question.index[0], texts)}"


def _class(question: Question, texts: Texts) -> str:
    return f"the score of {question._label('class')}"


def _query(question: Question, texts: Texts) -> str:
    where = _where(question.axes[0], question.index[0], texts)
    return f"the score of {question._label('class')} at {where}"


def _region(question: Question, texts: Texts) -> str:
    count = 0 if question.spot is None else question.spot.places
    many = "one place where" if count == 1 else f"{count} places where"
    around = f" {question.about}" if question.about else ""
    return f"the mean score of {question._label('class')} over the {many} it is predicted{around}"


def _place(question: Question, texts: Texts) -> str:
    _, row, column = question.index
    return f"the score of {question._label('class')} at row {row}, column {column}"


def _coordinate(question: Question, texts: Texts) -> str:
    if not question.index:
        return f"the value of {question.output}"
    parts = [_where(axis, i, texts) for axis, i in zip(question.axes, question.index, strict=True)]
    return f"the value of {question.output} at {', '.join(parts)}"


def _function(question: Question, texts: Texts) -> str:
    return f"{question.about} of {question.output or 'the output'}"


def _combined(question: Question, texts: Texts) -> str:
    """What is added up, and what it is held against."""
    more = [part for part in question.parts if part.weight >= 0]
    less = [part for part in question.parts if part.weight < 0]
    if len(more) == len(less) == 1 and _beside(more[0], less[0]):
        shared = more[0].words(texts)
        own, other = (_called(part.question) for part in (more[0], less[0]))
        shown = [part.question.probability for part in (*more, *less)]
        likely = [_share(one) for one in shown if one is not None]
        said = shared.replace(own, f"{own} against {other}", 1)
        return f"{said}, probabilities {' and '.join(likely)}" if len(likely) == 2 else said
    sums = [", plus ".join(part.words(texts) for part in parts) for parts in (more, less) if parts]
    said = ", against ".join(sums)
    if len(question.parts) == 1 and question.parts[0].question.probability is not None:
        said += f", probability {_share(question.parts[0].question.probability)}"
    return said if more else f"against {said}"


def _beside(one: Part, other: Part) -> bool:
    """Whether two parts differ by nothing but the class or word."""
    a, b = one.question, other.question
    if (a.kind, one.log, one.weight) != (b.kind, other.log, -other.weight) or not (a.index and b.index):
        return False
    alone = (a.index[1:], b.index[1:]) if a.kind in ("region", "place") else (a.index[:-1], b.index[:-1])
    return a.kind not in ("coordinate", "region") and alone[0] == alone[1]


def _called(question: Question) -> str:
    return question._token() if question.kind in ("next token", "word") else question._label("class")


_WORDS: Mapping[QuestionKind, Callable[[Question, Texts], str]] = {
    "next token": _next_token,
    "word": _word,
    "class": _class,
    "query": _query,
    "region": _region,
    "place": _place,
    "coordinate": _coordinate,
    "function": _function,
    "combined": _combined,
}


def _where(axis: Axis, place: int, texts: Texts) -> str:
    if not axis.space:
        return f"index {place}"
    if axis.kind == "queries":
        return f"query {place}"
    return f"place {place + axis.first} of {axis.space}"


def name_of_function(function: Any) -> str:
    """What to call a user's function: its name, else that it has none."""
    name = getattr(function, "__qualname__", "") or type(function).__name__
    name = name.rpartition("<locals>.")[2]
    return "your function" if name == "<lambda>" else f"your function {name}"


def box_words(box: Tensor) -> str:
    """A box in words, as the model gives it."""
    return f"box ({', '.join(f'{float(edge):.2f}' for edge in box)})"
