"""What the graph's page shows of one input: its tokens, heads' maps, and relevance on its way."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fxplain.attention.records import Stream, TokenSpace
from fxplain.display import Display
from fxplain.render.colours import to_array
from fxplain.render.graph.packed import Packed
from fxplain.render.overlay import data_uri, enlarge
from fxplain.render.readable import Explained
from fxplain.render.shown import score_of, shown
from fxplain.render.words import direction, pieces, special

_MOST_CELLS = 4096
"""Tokens of one space that the page draws."""


@dataclass(frozen=True, eq=False)
class Look:
    """One sample of one input, as far as it is known. Steps go by the names of their nodes in the graph."""

    spaces: tuple[TokenSpace, ...]
    streams: tuple[Stream, ...]
    display: Display
    maps: Mapping[str, Packed] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Attentions without a map on the page, and why."""
    result: Explained | None = None
    """The explanation, if there is one."""
    passed: Mapping[str, Tensor] = field(default_factory=dict)
    """Attention -> [token]: how much of each token's relevance comes through it."""
    sample: int = 0
    notes: tuple[str, ...] = ()


def as_data(look: Look) -> dict[str, Any]:
    """Everything as plain values for the page's script."""
    tokens = sum(space.size for space in look.spaces)
    return {
        "tokens": [text for space in look.spaces for text in _names(look, space)],
        "blocks": [_block(look, space) for space in look.spaces if _drawn(space)],
        "streams": {stream.name: _ranges(stream.tokens) for stream in look.streams},
        "maps": {name: asdict(maps) for name, maps in look.maps.items()},
        "leftOut": dict(look.left_out),
        "relevance": _floats(_relevance(look, tokens)),
        "own": _own(look),
        "passed": {name: _floats(to_array(values)) for name, values in look.passed.items()},
        "method": look.result.method if look.result is not None else "",
    }


def words_of(look: Look) -> list[str]:
    """What was explained, and how far it goes, in a few lines."""
    lines = list(look.notes)
    if look.result is not None:
        question = look.display.question(look.result.questions, look.sample)
        target = look.display.target_name(look.result.target, look.sample)
        lines.insert(0, f"{question or target}: {score_of(look.result, look.sample):.4g}")
    return lines


def _drawn(space: TokenSpace) -> bool:
    return space.origin != "mixing" and space.size <= _MOST_CELLS


def _names(look: Look, space: TokenSpace) -> list[str]:
    """A readable name for each token."""
    texts = look.display.texts(space.name, look.sample, space.size)
    if texts is not None and len(texts) == space.size:
        return [piece.text for piece in pieces(list(texts))]
    short = space.name.rpartition(".")[2]
    if len(space.grid) > 1:
        places = np.ndindex(*space.grid)
        return [f"{short} {', '.join(map(str, place))}" for place in places]
    return [short] if space.size == 1 else [f"{short} {i}" for i in range(space.size)]


def _block(look: Look, space: TokenSpace) -> dict[str, Any]:
    """One space as it is drawn: words, or cells with the picture behind them."""
    found: dict[str, Any] = {"space": space.name, "start": space.start, "size": space.size}
    texts = look.display.texts(space.name, look.sample, space.size)
    if texts is not None and len(texts) == space.size:
        shown_as = pieces(list(texts))
        marks = [special(text) for text in texts]
        words = zip(shown_as, marks, strict=True)
        found["words"] = [[p.before, p.text, p.line_break, mark] for p, mark in words]
        found["direction"] = direction(list(texts))
        return found
    found["across"] = space.grid[-1] if len(space.grid) > 1 else 0
    picture = look.display.image(space.name, look.sample)
    if picture is not None and picture.ndim == 3 and len(space.grid) == 2:
        found["picture"] = data_uri(enlarge(picture))
    return found


def _relevance(look: Look, tokens: int) -> Any:
    values = np.zeros(tokens, dtype=np.float32)
    if look.result is not None:
        for space in look.result.spaces:
            own = to_array(look.result.relevance[space.name][look.sample])
            values[space.start : space.start + space.size] = own
    return values


def _own(look: Look) -> list[int]:
    """The tokens whose rows were read."""
    if look.result is None:
        return []
    found: list[int] = []
    for space in look.result.spaces:
        aside = shown(look.result, space.name, look.sample).aside
        found += [space.start + int(place) for place in np.flatnonzero(aside)]
    return found


def _ranges(tokens: Sequence[int]) -> list[list[int]]:
    """Tokens as ranges [first, one after the last], in their order.

    Example:
        >>> _ranges((4, 5, 6, 0, 9))
        [[4, 7], [0, 1], [9, 10]]
    """
    found: list[list[int]] = []
    for token in tokens:
        if found and found[-1][1] == token:
            found[-1][1] = token + 1
        else:
            found.append([token, token + 1])
    return found


def _floats(values: Any) -> str:
    """Numbers as base64 of 32-bit floats."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")
