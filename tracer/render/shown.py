"""The relevance of one token space in one sample, ready to be drawn: values, scale, rows set aside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxplain.attention.records import TokenSpace
from fxplain.render.colours import Scale, to_array
from fxplain.render.readable import Explained


@dataclass(frozen=True, eq=False)
class Shown:
    """One space of one sample: ``values`` [tokens] and the ``scale`` to colour them by."""

    space: TokenSpace
    values: NDArray[Any]
    aside: NDArray[np.bool_]
    """[tokens]: the tokens whose own row was read, see :func:`shown`."""
    scale: Scale

    @property
    def empty(self) -> bool:
        """No token of this space matters to the score, own entries apart."""
        return not np.any(self.values[~self.aside])

    @property
    def total(self) -> float:
        """Sum of the relevance, without the entries set aside."""
        return float(self.values[~self.aside].sum())


def shown(result: Explained, name: str, sample: int) -> Shown:
    """The values of one space in one sample.

    A token whose row was read holds its own identity entry there (relevancy = identity + increments), so
    it is marked, and its value does not stretch the colours of the others; a method that goes by no rows has
    no such entries. Where most of all tokens are read (mean pooling), none is set aside.
    """
    space = next(space for space in result.spaces if space.name == name)
    values = to_array(result.relevance[name][sample])
    aside = np.zeros(space.size, dtype=np.bool_)
    read = [token - space.start for token, weight in _rows(result, sample) if weight]
    inside = [token for token in read if 0 <= token < space.size]
    if result.aside and len(read) * 2 <= sum(other.size for other in result.spaces):
        aside[inside] = True
    return Shown(space, values, aside, Scale.of(values, aside))


@dataclass(frozen=True)
class Sharpness:
    """How much the relevance of one sample is gathered in few tokens of its inputs."""

    evenly: float
    """As if so many tokens shared it evenly: the exponential of the entropy of their shares."""
    tokens: int
    first: int
    """A tenth of the tokens, at least one: the most relevant ones."""
    share: float
    """Of the relevance that these have, 0 to 1."""

    def __str__(self) -> str:
        digits = 1 if self.evenly < 9.95 else 0
        whole = f"as if {self.evenly:.{digits}f} of {self.tokens} tokens shared it evenly"
        most = "the most relevant token has" if self.first == 1 else f"the {self.first} most relevant have"
        return f"{whole}; {most} {self.share:.0%}"


def sharpness(result: Explained, sample: int) -> Sharpness | None:
    """How sharp the explanation of one sample is; None where nothing has relevance.

    Rows that were read do not count, nor tokens that are made of others.
    """
    parts = [shown(result, space.name, sample) for space in result.spaces if space.origin == "input"]
    sizes = np.concatenate([np.abs(part.values[~part.aside]).astype(np.float64) for part in parts] or [[]])
    sizes = np.nan_to_num(sizes, posinf=0.0)
    if not sizes.sum() > 0:
        return None
    shares = np.sort(sizes / sizes.sum())[::-1]
    some = shares[shares > 0]
    first = max(round(len(shares) / 10), 1)
    evenly = float(np.exp(-(some * np.log(some)).sum()))
    return Sharpness(evenly, len(shares), first, float(shares[:first].sum()))


def score_of(result: Explained, sample: int) -> float:
    """The score of one sample as a plain number."""
    return float(result.score[sample].detach())


def readout_words(result: Explained, sample: int, most: int = 6) -> str:
    """The rows that were read, in words: ``input_ids[0]``, or ``0.5 of input_ids[0], 0.5 of ...``."""
    rows = [(token, weight) for token, weight in _rows(result, sample) if weight]
    words = [_token_name(result, token) for token, _ in rows[:most]]
    if len(rows) > 1:
        words = [f"{weight:.3g} of {word}" for word, (_, weight) in zip(words, rows, strict=False)]
    rest = f", … ({len(rows)} in all)" if len(rows) > most else ""
    return ", ".join(words) + rest


def _rows(result: Explained, sample: int) -> tuple[tuple[int, float], ...]:
    return result.readout[sample] if sample < len(result.readout) else ()


def _token_name(result: Explained, token: int) -> str:
    for space in result.spaces:
        if space.start <= token < space.start + space.size:
            position = np.unravel_index(token - space.start, space.grid or (space.size,))
            return f"{space.name}[{', '.join(str(int(i)) for i in position)}]"
    return f"token {token}"
