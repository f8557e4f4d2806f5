"""Tokens that are neither image nor text (boxes, queries, latents, pooled tokens): bars and plain maps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from fxplain.render.colours import Scale, css_gradient, number
from fxplain.render.overlay import data_uri, plain_map
from fxplain.render.readable import Explained
from fxplain.render.shown import Shown, shown

_MOST_BARS = 400


@dataclass(frozen=True)
class Bar:
    """One token, or several neighbours where there are very many."""

    height: str
    """Percent, as CSS writes it."""
    style: str
    """Classes: ``neg``, ``own``."""
    tip: str


@dataclass(frozen=True)
class Strip:
    """The relevance of one space: bars, or maps (``data:`` addresses) where tokens have rows and columns."""

    space: str
    about: str
    bars: tuple[Bar, ...]
    maps: tuple[str, ...]
    gradient: str
    """The maps' colour bar; '' for bars."""
    scale: Scale
    own: bool


def strips(result: Explained, sample: int, drawn: Collection[str]) -> list[Strip]:
    """Every space of one sample that has relevance and is not ``drawn`` as picture or text already."""
    spaces = (shown(result, name, sample) for name in result.relevance if name not in drawn)
    return [_strip(space) for space in spaces if not space.empty]


def _strip(space: Shown) -> Strip:
    info = space.space
    size = " x ".join(str(n) for n in info.grid)
    about = f"{size} {'token' if info.size == 1 else 'tokens'}, {_origin(info.origin, info.source)}"
    if len(info.grid) > 1 and min(info.grid[-2:]) > 1:
        maps = tuple(data_uri(picture) for picture in plain_map(space))
        return Strip(info.name, about, (), maps, css_gradient(space.scale), space.scale, own=False)
    return Strip(info.name, about, _bars(space), (), "", space.scale, bool(space.aside.any()))


def _origin(origin: str, source: str) -> str:
    words = {"input": "input", "parameter": "born of the parameter", "mixing": "mixed by"}
    return f"{words.get(origin, origin)} {source}".strip()


def _bars(space: Shown) -> tuple[Bar, ...]:
    high = max(abs(space.scale.low), abs(space.scale.high)) or 1.0
    groups = np.array_split(np.arange(space.space.size), min(space.space.size, _MOST_BARS))
    bars = []
    for group in groups:
        # of many neighbours the strongest is drawn: a mean would hide it
        strongest = int(group[np.argmax(np.abs(space.values[group]))])
        value, own = float(space.values[strongest]), bool(space.aside[strongest])
        classes = [("own", own), ("neg", value < 0 and not own)]
        share = 1.0 if own else min(abs(value) / high, 1.0)
        bars.append(
            Bar(f"{share * 100:.1f}", " ".join(n for n, on in classes if on), _tip(strongest, value, own))
        )
    return tuple(bars)


def _tip(token: int, value: float, own: bool) -> str:
    remark = "\nthis row was read: its own entry is not to scale" if own else ""
    return f"{number(value)}\ntoken {token}{remark}"
