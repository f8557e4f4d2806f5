"""What pages and pictures read of an explanation: pages know these forms, and nothing that makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from fxplain.attention.records import Attention, Stream, TokenSpace
from fxplain.display import Display
from fxplain.errors import FxplainError
from fxplain.questions import Question


class Explained(Protocol):
    """One explanation of one batch; :class:`fxplain.Result` says what each part is."""

    @property
    def method(self) -> str: ...

    @property
    def score(self) -> Tensor: ...

    @property
    def target(self) -> Any: ...

    @property
    def output(self) -> str: ...

    @property
    def relevance(self) -> Mapping[str, Tensor]: ...

    @property
    def spaces(self) -> tuple[TokenSpace, ...]: ...

    @property
    def streams(self) -> tuple[Stream, ...]: ...

    @property
    def readout(self) -> tuple[tuple[tuple[int, float], ...], ...]: ...

    @property
    def attentions(self) -> tuple[Attention, ...]: ...

    @property
    def verified(self) -> float: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def aside(self) -> bool: ...

    @property
    def mode(self) -> str: ...

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...

    @property
    def questions(self) -> tuple[Question, ...]: ...

    @property
    def batch(self) -> int: ...


class Placed(Protocol):
    """Where an answer lies; see :class:`fxplain.explainer.answer.Answer`."""

    @property
    def space(self) -> str: ...

    @property
    def first(self) -> int: ...

    @property
    def texts(self) -> tuple[str, ...]: ...


class Ranged(Protocol):
    """What a column of an answer's matrix stands for; see :class:`fxplain.explainer.generated.Column`."""

    @property
    def space(self) -> str: ...

    @property
    def index(self) -> int: ...

    @property
    def text(self) -> str: ...

    @property
    def part(self) -> str: ...

    @property
    def turn(self) -> str: ...


class Answered(Protocol):
    """An explained answer; :class:`fxplain.Generated` says what each part is."""

    @property
    def result(self) -> Explained: ...

    @property
    def display(self) -> Display: ...

    @property
    def answer(self) -> Placed: ...

    @property
    def text(self) -> str: ...

    @property
    def columns(self) -> tuple[Ranged, ...]: ...

    @property
    def parts(self) -> tuple[str, ...]: ...

    @property
    def matrix(self) -> Tensor: ...

    @property
    def stretches(self) -> tuple[str, ...]: ...

    @property
    def probabilities(self) -> tuple[float | None, ...]: ...

    @property
    def questions(self) -> tuple[str, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def facts(self) -> dict[str, Any]: ...


class Several(Protocol):
    """Several answers explained; :class:`fxplain.explainer.ranked.Ranked` says what each part is."""

    @property
    def result(self) -> Explained: ...

    @property
    def display(self) -> Display: ...

    @property
    def samples(self) -> tuple[int, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def display_of(self, place: int) -> Display: ...

    def __getitem__(self, place: int) -> Any: ...

    def facts(self) -> dict[str, Any]: ...


class Compared(Protocol):
    """Several explanations of one prediction; see :class:`fxplain.Comparison`."""

    @property
    def refused(self) -> Mapping[str, FxplainError]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...

    def items(self) -> Iterable[tuple[str, Explained]]: ...

    def values(self) -> Iterable[Explained]: ...
