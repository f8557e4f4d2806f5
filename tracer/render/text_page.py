"""Text with its relevance as background colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fxplain.display import Display
from fxplain.render.colours import Scale, number
from fxplain.render.pages import page
from fxplain.render.readable import Explained
from fxplain.render.shown import Shown, score_of, shown
from fxplain.render.words import direction, pieces, special


@dataclass(frozen=True)
class Token:
    """One token as the page draws it."""

    text: str
    raw: str
    """As it was given; for the tooltip."""
    strength: str
    """0 to 1, as CSS writes it: how strong the colour is."""
    style: str
    """Classes: ``neg`` for negative relevance, ``hot`` for strong colour, ``own`` for a row read."""
    tip: str
    before: str
    """The space and line breaks before it, which are not coloured."""
    line_break: bool
    special: bool
    """A tokenizer's own mark, always written left to right."""
    turn: str = ""
    """The turn of a conversation, or which of two texts, that begins with it."""


@dataclass(frozen=True)
class ColouredText:
    """One text of one sample."""

    space: str
    direction: str
    tokens: tuple[Token, ...]
    scale: Scale
    own: bool
    """Whether a token's own entry is set aside."""


def coloured_texts(result: Explained, display: Display, sample: int) -> list[ColouredText]:
    """Every space of one sample that ``display`` has the words of."""
    found = []
    for name in result.relevance:
        texts = display.texts(name, sample, result.relevance[name].shape[1])
        if texts is not None:
            turns = display.turns.get(name, ())
            begins = {start: what for start, _, what in (turns[sample] if sample < len(turns) else ())}
            space = shown(result, name, sample)
            space = replace(space, scale=replace(space.scale, stretch=display.look.stretch))
            found.append(_coloured(space, texts, begins))
    return found


def text_page(result: Explained, display: Display) -> str:
    """A page with the coloured text alone, one paragraph per sample and space."""
    samples = [
        {
            "caption": display.caption(i) or (f"sample {i}" if result.batch > 1 else ""),
            "target": display.target_name(result.target, i),
            "question": display.question(result.questions, i),
            "score": score_of(result, i),
            "texts": coloured_texts(result, display, i),
        }
        for i in range(result.batch)
    ]
    return page(
        "text.html.j2",
        title=display.title or "coloured text",
        result=result,
        samples=samples,
        notes=display.notes,
    )


def _coloured(space: Shown, texts: Sequence[str], begins: Mapping[int, str]) -> ColouredText:
    unit = space.scale.unit(space.values)
    tokens = []
    # a shorter list of words (the padding cut off) is fine, and so is a longer one
    shown_pieces = pieces(list(texts)[: len(unit)])
    for i, (raw, piece) in enumerate(zip(texts, shown_pieces, strict=False)):
        own = bool(space.aside[i])
        strength = 0.0 if own else float(unit[i])
        classes = [("own", own), ("neg", strength < 0), ("hot", abs(strength) >= 0.7)]
        tokens.append(
            Token(
                text=piece.text,
                raw=raw,
                strength=f"{abs(strength):.3f}",
                style=" ".join(name for name, wanted in classes if wanted),
                tip=_tip(i, raw, float(space.values[i]), own),
                before=piece.before,
                line_break=piece.line_break,
                special=special(raw),
                turn=begins.get(i, ""),
            )
        )
    return ColouredText(
        space.space.name, direction(texts), tuple(tokens), space.scale, bool(space.aside.any())
    )


def _tip(index: int, raw: str, value: float, own: bool) -> str:
    remark = "\nthis row was read: its own entry is not coloured" if own else ""
    read_as = getattr(raw, "read_as", "")
    instead = f", read as {read_as}" if read_as else ""
    return f"{number(value)}\ntoken {index}: {str(raw)!r}{instead}{remark}"
