"""The tokens of an explanation one by one: where each lies, its text, and how much it matters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fxplain.attention.records import TokenSpace
from fxplain.display import Display
from fxplain.errors import OutputError
from fxplain.render.shown import shown
from fxplain.result import Result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TokenRelevance:
    """One token of an input and its relevance.

    Args:
        sample: of the batch.
        space: the token space, named after the input.
        index: its number in the space.
        place: its place in the space's grid: ``(7,)`` in a text, ``(row, column)`` in a picture.
        text: what it stands for: a word, or a stretch of time; empty where that is not known.
        relevance: to the score; without unit.
        share: the part of the sample's whole relevance (of absolute values) that it has, 0 to 1.
        aside: whether its own row was read: then it has no relevance of its own.
        special: whether it is one that the tokenizer adds: a beginning, an end, the mark of a turn.
    """

    sample: int
    space: str
    index: int
    place: tuple[int, ...]
    text: str
    relevance: float
    share: float
    aside: bool = False
    special: bool = False

    def __str__(self) -> str:
        return repr(self.text) if self.text else f"{self.space}[{', '.join(map(str, self.place))}]"


def tokens_of(result: Result, display: Display) -> tuple[TokenRelevance, ...]:
    """Every token of every input, sample by sample, in order."""
    return tuple(token for sample in range(result.batch) for token in _of_sample(result, display, sample))


def _of_sample(result: Result, display: Display, sample: int) -> list[TokenRelevance]:
    parts = [shown(result, space.name, sample) for space in result.spaces if space.origin == "input"]
    values = [np.where(part.aside, 0.0, part.values) for part in parts]
    whole = sum(float(np.abs(own).sum()) for own in values)
    found = []
    for part, own in zip(parts, values, strict=True):
        texts = display.texts(part.space.name, sample, part.space.size) or _on_axis(
            display, part.space, sample
        )
        grid = part.space.grid or (part.space.size,)
        for index in range(part.space.size):
            found.append(
                TokenRelevance(
                    sample=sample,
                    space=part.space.name,
                    index=index,
                    place=tuple(int(i) for i in np.unravel_index(index, grid)),
                    text=str(texts[index]) if index < len(texts) else "",
                    relevance=float(own[index]),
                    share=abs(float(own[index])) / whole if whole else 0.0,
                    aside=bool(part.aside[index]),
                    special=index < len(texts) and bool(getattr(texts[index], "special", False)),
                )
            )
    return found


def _on_axis(display: Display, space: TokenSpace, sample: int) -> Sequence[str]:
    """Where on the axis of a sound or series each token lies; nothing where there is none."""
    series = display.line(space.name, sample)
    if series is None or len(space.grid) > 1:
        return ()
    return [series.words(token, space.size) for token in range(space.size)]


def strongest(tokens: Iterable[TokenRelevance], count: int) -> tuple[TokenRelevance, ...]:
    """Those with the largest relevance, the largest first; what was set aside does not count."""
    return tuple(sorted((t for t in tokens if not t.aside), key=lambda t: -t.relevance)[:count])


def evenly(tokens: Iterable[TokenRelevance]) -> float:
    """How sharp an explanation is: as if so many tokens shared it evenly.

    It is the exponential of the entropy of the shares.

    Example:
        >>> sharp = TokenRelevance(0, "x", 0, (0,), "", relevance=1.0, share=1.0)
        >>> round(evenly([sharp]), 3)
        1.0
    """
    shares = np.array([token.share for token in tokens if token.share > 0])
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def frame(tokens: Sequence[TokenRelevance]) -> pandas.DataFrame:
    """A table with a row for each token.

    Raises:
        OutputError: pandas is not installed.
    """
    columns = list(TokenRelevance.__dataclass_fields__)
    return pandas_library().DataFrame([asdict(token) for token in tokens], columns=columns)


def pandas_library() -> Any:
    """The library, imported when a table is asked for.

    Raises:
        OutputError: it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise OutputError(
            "pandas is not installed", hint="install it: pip install 'fxplain[pandas]'"
        ) from error
    return pandas
