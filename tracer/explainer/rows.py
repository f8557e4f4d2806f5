"""Results put together and taken apart, sample by sample; and what is shown beside one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fxplain.display import Display
from fxplain.result import Relevance, Result


def stacked(results: Sequence[Result]) -> Result:
    """Results of the same inputs as one, whose samples are theirs, one after the other."""
    first = results[0]
    names = list(first.relevance)
    values = {name: torch.cat([result.relevance[name] for result in results]) for name in names}
    return replace(
        first,
        relevance=Relevance(values, first.spaces),
        score=torch.cat([result.score for result in results]),
        target=tuple(target for result in results for target in result.target),
        readout=tuple(rows for result in results for rows in result.readout),
        questions=tuple(question for result in results for question in result.questions),
        notes=merged([note for result in results for note in result.notes]),
        verified=max(result.verified for result in results),
        relevancy=None,
        inputs={},
        later=None,
    )


_SHARE = re.compile(r"\d+(?:\.\d+)?%")


def merged(notes: Sequence[str]) -> tuple[str, ...]:
    """Each note once; of those that differ in their first percentage alone, one with the range.

    Example:
        >>> merged(["a", "23% lies on it", "41% lies on it", "a"])
        ('a', '23% to 41% lies on it')
    """
    alike: dict[str, list[str]] = {}
    for note in notes:
        alike.setdefault(_SHARE.sub("%", note, count=1), []).append(note)
    found = []
    for several in alike.values():
        if len(set(several)) == 1:
            found.append(several[0])
            continue
        shares = sorted((match[0] for one in several if (match := _SHARE.search(one))), key=_value)
        found.append(_SHARE.sub(f"{shares[0]} to {shares[-1]}", several[0], count=1))
    return tuple(found)


def _value(share: str) -> float:
    return float(share.rstrip("%"))


def chosen(result: Result, rows: Sequence[int]) -> Result:
    """Some samples of a result."""
    values = {name: own[list(rows)] for name, own in result.relevance.items()}
    return replace(
        result,
        relevance=Relevance(values, result.spaces),
        score=result.score[list(rows)],
        target=tuple(result.target[row] for row in rows),
        readout=tuple(result.readout[row] for row in rows),
        questions=tuple(result.questions[row] for row in rows),
        relevancy=None,
        inputs={},
        later=None,
    )


def display_of(display: Display, sample: int) -> Display:
    """What is shown beside one sample."""

    def own(by_space: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        return {name: each[sample : sample + 1] for name, each in by_space.items() if sample < len(each)}

    return replace(
        display,
        images=own(display.images),
        tokens=own(display.tokens),
        turns=own(display.turns),
        seen=own(display.seen),
        series=own(display.series),
        captions=display.captions[sample : sample + 1],
    )
