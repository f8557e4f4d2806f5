"""What was asked, in words: what the axes of an output are, and what one sample's score is a score of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

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


QuestionKind = Literal["next token", "word", "class", "query", "region", "place", "coordinate", "function"]


@dataclass(frozen=True)
class Question:
    """What the score of one sample answers. ``str(question)`` says it in words.

    Args:
        kind: the next token after a place, a word at a place, a class, a class as one of several queries (or
            tokens) sees it, a class over a region of a picture or at one place of it, a plain number, or the
            user's own function.
        output: name of the output.
        index: the place in one sample's output; empty for a function.
        axes: what the axes of the output are.
        name: of the class or word, where one is known.
        largest: over how many values it is the largest, where nobody named it; else 0.
        probability: by a softmax over classes or words; None where that means nothing.
        places: over how many places a region goes.
        about: more words (a box; the name of a function).

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
    places: int = 0
    about: str = ""

    def __str__(self) -> str:
        return self.words()

    def named(self, names: Mapping[int, str] | Sequence[str]) -> Question:
        """The same with a name for the class or word, if it has none yet and one is known."""
        if self.name or not self.index or self.kind in ("coordinate", "function"):
            return self
        label = self.label
        known = names.get(label) if isinstance(names, Mapping) else dict(enumerate(names)).get(label)
        return self if known is None else replace(self, name=str(known))

    @property
    def label(self) -> int:
        """The index of the class or word."""
        return self.index[0] if self.kind in ("region", "place") else self.index[-1]

    def words(self, texts: Callable[[str, int], str | None] = lambda space, place: None) -> str:
        """In words.

        Args:
            texts: the text of a token space up to and with one of its places, where it is known.
        """
        said = _WORDS[self.kind](self, texts)
        chosen = f", the largest of {self.largest}" if self.largest > 1 else ""
        likely = "" if self.probability is None else f", probability {_share(self.probability)}"
        return said + (f", {self.about}" if self.about and self.kind != "function" else "") + likely + chosen

    def _label(self, what: str) -> str:
        return f"{what} {self.label}" + (f" {self.name!r}" if self.name else "")


def _share(probability: float) -> str:
    if probability >= 0.995:
        return "over 0.99"
    return f"{probability:.2f}" if probability >= 0.005 else f"{probability:.2g}"


Texts = Callable[[str, int], "str | None"]


def _next_token(question: Question, texts: Texts) -> str:
    place, axis = question.index[0], question.axes[0]
    before = texts(axis.space, place + axis.first)
    after = f" after {before!r}" if before else f" after {_where(axis, place, texts)}" if axis.space else ""
    word = f"{question.name!r}" if question.name else f"token {question.label}"
    return f"the score of {word} as the next token{after}"


def _word(question: Question, texts: Texts) -> str:
    word = f"{question.name!r}" if question.name else f"token {question.label}"
    return f"the score of {word} at {_where(question.axes[0], question.index[0], texts)}"


def _class(question: Question, texts: Texts) -> str:
    return f"the score of {question._label('class')}"


def _query(question: Question, texts: Texts) -> str:
    where = _where(question.axes[0], question.index[0], texts)
    return f"the score of {question._label('class')} at {where}"


def _region(question: Question, texts: Texts) -> str:
    many = f"{question.places} places where" if question.places > 1 else "one place where"
    return f"the mean score of {question._label('class')} over the {many} it is predicted"


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


_WORDS: Mapping[QuestionKind, Callable[[Question, Texts], str]] = {
    "next token": _next_token,
    "word": _word,
    "class": _class,
    "query": _query,
    "region": _region,
    "place": _place,
    "coordinate": _coordinate,
    "function": _function,
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
