"""What is drawn over a picture beside relevance: boxes and outlines of what was asked, with name and
probability."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxplain.display import Display
from fxplain.questions import Question, Spot
from fxplain.render.readable import Explained

COLOURS = ("#00e5ff", "#ffe600", "#ff5cf4", "#5cff6e", "#ff9440", "#b49cff", "#ffffff", "#ff5050")
"""Of marks, in turn: bright, as they stand on photographs, with a dark edge around them."""


@dataclass(frozen=True)
class Mark:
    """One thing that is marked on a picture.

    Args:
        text: its name and probability.
        box: left, top, right and bottom, as parts of the picture's sides; empty for an outline.
        lines: of an outline: ends (across, down, across, down) of its pieces, as parts of the sides.
        colour: as CSS and matplotlib write it.
    """

    text: str
    box: tuple[float, ...] = ()
    lines: tuple[tuple[float, float, float, float], ...] = ()
    colour: str = COLOURS[0]

    @property
    def corner(self) -> tuple[float, float]:
        """Left and top of the text, as parts of the picture's sides."""
        if self.box:
            return max(self.box[0], 0.0), max(self.box[1], 0.0)
        tops = sorted((line[1], line[0]) for line in self.lines)
        return (tops[0][1], tops[0][0]) if tops else (0.0, 0.0)

    @property
    def path(self) -> str:
        """The outline as SVG writes it, in percent of the picture's sides."""
        return " ".join(
            f"M{a * 100:.2f} {b * 100:.2f}L{c * 100:.2f} {d * 100:.2f}" for a, b, c, d in self.lines
        )


def marks_of(result: Explained, display: Display, sample: int) -> tuple[Mark, ...]:
    """What marks the thing that one sample's score is about; a sum of several has several."""
    if sample >= len(result.questions):
        return ()
    question = result.questions[sample].named(display.labels)
    asked = [part.question for part in question.parts] or [question]
    found = [mark for one in asked if (mark := mark_of(one)) is not None]
    return tuple(replace(mark, colour=COLOURS[i % len(COLOURS)]) for i, mark in enumerate(found))


def mark_of(question: Question) -> Mark | None:
    """The mark of one question; None where it is not known where on the picture it lies."""
    spot = question.spot
    if spot is None or not (spot.box or spot.runs):
        return None
    text = named(question)
    return Mark(text, box=spot.box) if spot.box else Mark(text, lines=outline(spot))


def named(question: Question) -> str:
    """The class or word that was asked for, with its probability."""
    if not question.index:
        return question.about or "a score"
    text = question.name.strip() or f"class {question.label}"
    if question.kind in ("next token", "word"):
        text = repr(question.name) if question.name else f"token {question.label}"
    elif question.kind == "coordinate":
        text = f"{question.output}[{', '.join(map(str, question.index))}]"
    return text if question.probability is None else f"{text} {question.probability:.2f}"


def outline(spot: Spot) -> tuple[tuple[float, float, float, float], ...]:
    """The edges around the places of a region, as parts of the picture's sides.

    Example:
        >>> len(outline(Spot(grid=(1, 2), runs=(0, 1, 1))))
        4
    """
    mask = np.asarray(spot.mask().numpy())
    rows, columns = mask.shape
    padded = np.pad(mask, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # edges between a row and the next
    down = padded[1:-1, 1:] != padded[1:-1, :-1]
    lines = [(c0 / columns, r / rows, c1 / columns, r / rows) for r, c0, c1 in _runs(across)]
    lines += [(c / columns, r0 / rows, c / columns, r1 / rows) for c, r0, r1 in _runs(down.T)]
    return tuple(lines)


def _runs(flags: NDArray[Any]) -> list[tuple[int, int, int]]:
    """(line, first, one after the last) of every run of true flags."""
    found = []
    for line, row in enumerate(flags):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        found += [(line, int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return found
