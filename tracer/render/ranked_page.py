"""Several answers about one input: a page and a picture with all of them, each with its probability."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fxplain.display import Display
from fxplain.files import save_as
from fxplain.render.colours import heat, kind_name
from fxplain.render.heatmap import cells_figure
from fxplain.render.marks import COLOURS, Mark, mark_of, named
from fxplain.render.overlay import overlays
from fxplain.render.pages import page
from fxplain.render.picture import COLUMNS, Panel, figure_of, short, wrapped
from fxplain.render.readable import Explained, Several
from fxplain.render.report import Sample, sample_of
from fxplain.render.save import writers_of
from fxplain.render.shown import shown
from fxplain.render.words import pieces

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Answer:
    """One answer as the page shows it."""

    number: int
    name: str
    """Its class or word, with its probability."""
    colour: str
    sample: Sample


@dataclass(frozen=True)
class Asked:
    """One sample of the inputs: what is shown of it, and the answers about it."""

    caption: str
    picture: str
    """``data:`` address of the untouched picture; empty if there is none, or it is one of several."""
    marks: tuple[Mark, ...]
    answers: tuple[Answer, ...]


def save(several: Several, path: str | os.PathLike[str]) -> None:
    """Write several answers; see :meth:`fxplain.explainer.ranked.Ranked.save`.

    Raises:
        OutputError: unknown suffix, no such folder, or the disk refuses.
    """
    save_as("an explanation of several answers", path, WRITERS, several)


def ranked_page(several: Several) -> str:
    """All answers on one HTML page that loads nothing from anywhere."""
    return page("ranked.html.j2", **_shown(several))


def notebook_html(several: Several) -> str:
    """The page in a frame of its own, which changes nothing around it and is not changed by it."""
    return page("frame.html.j2", content=ranked_page(several), title=several.display.title or "answers")


def _shown(several: Several) -> dict[str, Any]:
    result = several.result
    return {
        "title": several.display.title or "fxplain",
        "result": result,
        "asked": [_asked(several, sample) for sample in sorted({*several.samples})],
        "notes": several.notes,
        "kinds": {kind: kind_name(kind) for kind in dict.fromkeys(a.kind for a in result.attentions)},
    }


def _places(several: Several, sample: int) -> list[int]:
    return [place for place, own in enumerate(several.samples) if own == sample]


def _asked(several: Several, sample: int) -> Asked:
    answers, marks, picture = [], [], ""
    for number, place in enumerate(_places(several, sample), 1):
        one, display = several[place].result, several.display_of(place)
        colour = COLOURS[(number - 1) % len(COLOURS)]
        found = sample_of(one, display, 0)
        images = tuple(
            replace(i, marks=tuple(replace(m, colour=colour) for m in i.marks)) for i in found.images
        )
        answers.append(Answer(number, _name(one, display), colour, replace(found, images=images)))
        marks += [replace(m, colour=colour, text=f"{number} {m.text}") for i in images[:1] for m in i.marks]
        originals = [image.original for image in images if image.original]
        picture = originals[0] if len(originals) == 1 else picture
    return Asked(answers[0].sample.caption, picture, tuple(marks), tuple(answers))


def _name(result: Explained, display: Display) -> str:
    if not result.questions:
        return display.target_name(result.target, 0)
    return named(result.questions[0].named(display.labels))


def ranked_figure(several: Several) -> Figure:
    """The untouched picture with all marks and the overlay of each answer; without pictures, rows of tokens,
    one for each answer."""
    rows: list[list[Panel]] = []
    for sample in sorted({*several.samples}):
        panels = _panels(several, sample)
        rows.extend(panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS))
    result = several.result
    lines = [short(several.display.title, 80)] if several.display.title else []
    lines.append(
        f"{result.method} · output {result.output} · graph and model differ by {result.verified:.0e}"
    )
    return figure_of(rows, "\n".join(lines)) if rows else cells_figure(_cells(several))


def _panels(several: Several, sample: int) -> list[Panel]:
    panels: list[Panel] = []
    marks: list[Mark] = []
    for number, place in enumerate(_places(several, sample), 1):
        one, display = several[place].result, several.display_of(place)
        colour = COLOURS[(number - 1) % len(COLOURS)]
        for overlay in overlays(one, display, 0):
            if number == 1 and not overlay.frame:
                panels.append(Panel(overlay.picture, display.caption(0) or "the input", None))
            own = tuple(replace(mark, colour=colour) for mark in overlay.marks)
            title = "\n".join(filter(None, (wrapped(f"{number}. {_name(one, display)}"), overlay.label)))
            panels.append(Panel(overlay.blended, title, overlay.scale, own))
        question = one.questions[0].named(display.labels) if one.questions else None
        mark = None if question is None else mark_of(question)
        if mark is not None:
            marks.append(replace(mark, colour=colour, text=f"{number} {mark.text}"))
    untouched = [panel for panel in panels if panel.scale is None]
    return [replace(p, marks=tuple(marks)) if [p] == untouched else p for p in panels]


def _cells(several: Several) -> list[tuple[str, list[str], Any, list[str]]]:
    """Title, words, colours [answer, token, 3] and names of the answers, of each space with relevance."""
    found = []
    for sample in sorted({*several.samples}):
        places = _places(several, sample)
        names = [_name(several[place].result, several.display_of(place)) for place in places]
        display = several.display_of(places[0])
        for space in several.result.spaces:
            rows = [shown(several.result, space.name, place) for place in places]
            if space.origin != "input" or all(row.empty for row in rows):
                continue
            texts: Sequence[str] = display.texts(space.name, 0, space.size) or ()
            words = [piece.text for piece in pieces(list(texts)[: space.size])]
            words = words or [str(number) for number in range(space.size)]
            colours = []
            for row in rows:
                colour, _ = heat(row.scale, row.scale.unit(row.values))
                colours.append(np.where(row.aside[:, None], 0.85, colour)[: len(words)])
            title = " · ".join(filter(None, (display.caption(0), space.name)))
            found.append((title, words, np.stack(colours), names))
    return found


WRITERS = writers_of(ranked_page, ranked_figure)
