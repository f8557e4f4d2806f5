"""Targets by name: from what a person writes to a target of :func:`fxplain.explain`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from fxplain.errors import TargetError
from fxplain.run.combined import Combined

_NUMBER = re.compile(r"[+-]?\d+")
_WORD_START = "Ġ▁ "
"""How vocabularies mark that a word begins."""


def named_target(target: Any, labels: Mapping[int, str]) -> Any:
    """A target with every name in it replaced by its index; what has no name stays as it is.

    Raises:
        TargetError: a name that is not known.

    Example:
        >>> named_target(["cat", (7, "dog"), 3], {0: "dog", 1: "cat"})
        [1, (7, 0), 3]
    """
    if isinstance(target, str):
        return parse_target(target, labels)
    if isinstance(target, Combined):
        return target.mapped(partial(named_target, labels=labels))
    if type(target) in (list, tuple):
        return type(target)(named_target(one, labels) for one in target)
    return target


def parse_target(text: str, labels: Mapping[int, str]) -> int | tuple[int, ...]:
    """An index, the name of a target, or several of them, separated by commas, that index the output.

    A name is looked up whole first, as names may hold commas; letters' case does not matter unless two names
    differ by it alone. A digit is an index even if a name looks the same. A word of a language model may
    begin with a space: ``" France"`` and ``"France"`` are two words of its vocabulary.

    Raises:
        TargetError: a name that is not known; the message has the near ones.

    Example:
        >>> parse_target("3", {}), parse_target("7, cat", {0: "dog", 1: "cat"})
        (3, (7, 1))
        >>> parse_target("tabby, tabby cat", {281: "tabby, tabby cat"})
        281
        >>> parse_target(" France", {4881: " France", 30: "France"})
        4881
    """
    whole = text.strip()
    if text != whole:  # a space before a word is a part of it
        spaced = _whole(text, labels)
        if spaced is not None:
            return spaced
    if _NUMBER.fullmatch(whole):
        return int(whole)
    found = _lookup(whole, labels)
    if found is not None:
        return found
    parts = [part.strip() for part in whole.split(",")]
    indices = tuple(_index(part, labels) for part in parts)
    return indices if len(indices) > 1 else indices[0]


def _index(part: str, labels: Mapping[int, str]) -> int:
    if _NUMBER.fullmatch(part):
        return int(part)
    found = _lookup(part, labels)
    pieces = labels.pieces(part) if found is None and hasattr(labels, "pieces") else []
    if len(pieces) > 1:
        raise TargetError(
            f"{part!r} is no single token, so it is not one target",
            expected="one token of the vocabulary",
            found=" + ".join(map(repr, pieces)),
            hint="ask for the first of them, or explain all as an answer: explainer.explain_generated",
        )
    if found is None:
        close = difflib.get_close_matches(part, [str(name) for name in labels.values()], n=4, cutoff=0.5)
        raise TargetError(
            f"there is no target named {part!r}",
            expected="an index, a name, or several of them separated by commas",
            found=f"{len(labels)} names, none of which is it" if labels else "a model that names no targets",
            hint=f"did you mean {', '.join(map(repr, close))}?" if close else "give the index",
        )
    return found


def _lookup(name: str, labels: Mapping[int, str]) -> int | None:
    """The index of a name: as it is written, else as a word of a vocabulary, else in other letters' case."""
    for written in (f" {name}", name):
        known = _whole(written, labels) if name and hasattr(labels, "index") else None
        if known is not None:
            return known
    for same in (_begins, _exact, _word, _any_case, _any_case_word):
        for index, label in labels.items():
            if name and same(name, label):
                return index
    return None


def _whole(text: str, labels: Mapping[int, str]) -> int | None:
    """The index of a name that is this text; a vocabulary knows it without a look at every word."""
    if hasattr(labels, "index"):
        found: int | None = labels.index(text)
        return found
    return next((index for index, label in labels.items() if label == text), None)


def _begins(name: str, label: str) -> bool:
    """A token that begins a word comes before one that goes on with it."""
    return label == f" {name}"


def _exact(name: str, label: str) -> bool:
    return name == label


def _word(name: str, label: str) -> bool:
    return name == label.lstrip(_WORD_START)


def _any_case(name: str, label: str) -> bool:
    return name.casefold() == label.casefold()


def _any_case_word(name: str, label: str) -> bool:
    return name.casefold() == label.lstrip(_WORD_START).casefold()
