"""Several methods on one prediction: a page, a picture and the numbers, each method beside the others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fxplain.attribution.table import METHODS, plain_name
from fxplain.display import Display
from fxplain.files import save_as
from fxplain.render.colours import kind_name
from fxplain.render.heatmap import heatmap_figure
from fxplain.render.overlay import overlays
from fxplain.render.pages import page
from fxplain.render.picture import COLUMNS, Panel, figure_of, short, to_png, wrapped
from fxplain.render.readable import Compared, Explained
from fxplain.render.report import Image, Sample, sample_of
from fxplain.render.save import (
    arrays_of,
    as_text,
    pictures_of,
    result_facts,
    result_json,
    zipped,
)
from fxplain.render.series.track import Track
from fxplain.render.strips import Strip
from fxplain.render.text_page import ColouredText

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One method on one thing that is shown."""

    method: str
    about: str
    image: Image | None = None
    text: ColouredText | None = None
    strip: Strip | None = None
    track: Track | None = None


@dataclass(frozen=True)
class Part:
    """One token space, or a frame of one, as every method sees it."""

    space: str
    label: str
    original: str | None
    rows: tuple[Row, ...]
    silent: tuple[str, ...] = ()
    """Methods that give it no relevance at all."""


def save(comparison: Compared, path: str | os.PathLike[str], display: Display | None = None) -> None:
    """Write a comparison; see :meth:`fxplain.comparison.Comparison.save`.

    Raises:
        OutputError: unknown suffix, no such folder, or the disk refuses.
    """
    save_as("a comparison", path, WRITERS, comparison, display or Display())


def comparison_page(comparison: Compared, display: Display) -> str:
    """All methods on one HTML page that loads nothing from anywhere."""
    first = next(iter(comparison.values()))
    found = []
    for sample in range(first.batch):
        by_method = {name: sample_of(result, display, sample) for name, result in comparison.items()}
        shown = next(iter(by_method.values()))
        found.append({"sample": shown, "parts": _parts(by_method)})
    return page(
        "comparison.html.j2",
        title=display.title or "fxplain",
        result=first,
        samples=found,
        notes=[*display.notes, *comparison.notes],
        methods=[(name, _about(name)) for name in comparison],
        refused=[(name, str(error).splitlines()) for name, error in comparison.refused.items()],
        kind_name=kind_name,
    )


def _about(name: str) -> str:
    method = METHODS.get(plain_name(name))
    return "" if method is None else f"{method.description} ({method.paper})"


def _parts(by_method: Mapping[str, Sample]) -> list[Part]:
    """What is shown of one sample, thing by thing, in the order in which the first method has them."""
    parts: dict[tuple[str, str, str], Part] = {}
    for method, sample in by_method.items():
        about = _about(method)
        rows = [("image", i.space, i.label, i.original, Row(method, about, image=i)) for i in sample.images]
        rows += [("text", t.space, "", None, Row(method, about, text=t)) for t in sample.texts]
        rows += [("track", t.space, t.about, None, Row(method, about, track=t)) for t in sample.tracks]
        rows += [("strip", s.space, s.about, None, Row(method, about, strip=s)) for s in sample.strips]
        for kind, space, label, original, row in rows:
            old = parts.get((kind, space, label))
            earlier = () if old is None else old.rows
            parts[kind, space, label] = Part(space, label, original, (*earlier, row))
    return [
        replace(part, silent=tuple(m for m in by_method if all(row.method != m for row in part.rows)))
        for part in parts.values()
    ]


def comparison_png(comparison: Compared, display: Display) -> bytes:
    """:func:`comparison_figure` as a PNG."""
    return to_png(comparison_figure(comparison, display))


def comparison_figure(comparison: Compared, display: Display) -> Figure:
    """The overlays of all methods in rows, one sample under the other; without pictures, rows of tokens."""
    first = next(iter(comparison.values()))
    rows: list[list[Panel]] = []
    for sample in range(first.batch):
        panels = _panels(comparison, display, sample)
        rows.extend(panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS))
    if not rows:
        return heatmap_figure(dict(comparison.items()), display)
    lines = [short(display.title, 80)] if display.title else []
    lines.append(f"output {first.output} · graph and model differ by {first.verified:.0e}")
    return figure_of(rows, "\n".join(lines))


def _panels(comparison: Compared, display: Display, sample: int) -> list[Panel]:
    drawn = {name: overlays(result, display, sample) for name, result in comparison.items()}
    spots = next(iter(drawn.values()))
    several = len({spot.space for spot in spots}) > 1
    result = next(iter(comparison.values()))
    what = display.caption(sample) or f"sample {sample}"
    asked = (
        display.question(result.questions, sample) or f"target {display.target_name(result.target, sample)}"
    )
    what = f"{what}\n{wrapped(asked)}"
    panels: list[Panel] = []
    seen: set[str] = set()
    for place, spot in enumerate(spots):
        if spot.space not in seen and not spot.frame:
            panels.append(Panel(spot.picture, what, None))
        seen.add(spot.space)
        for name, found in drawn.items():
            one = found[place]
            title = "\n".join(filter(None, (name, one.space if several else "", one.label)))
            panels.append(Panel(one.blended, title, one.scale, one.marks))
    return panels


def _html(comparison: Compared, display: Display) -> bytes:
    return comparison_page(comparison, display).encode("utf-8")


def _facts(
    comparison: Compared, facts_of: Callable[[Explained, Display], Any], display: Display
) -> dict[str, Any]:
    return {
        "format": "fxplain comparison 1",
        "methods": {name: facts_of(result, display) for name, result in comparison.items()},
        "refused": {name: str(error) for name, error in comparison.refused.items()},
    }


def _json(comparison: Compared, display: Display) -> bytes:
    facts = _facts(comparison, result_json, display)
    return (json.dumps(facts, allow_nan=False, ensure_ascii=True, indent=1) + "\n").encode("ascii")


def _npz(comparison: Compared, display: Display) -> bytes:
    arrays = {"facts": as_text(_facts(comparison, result_facts, display)), **pictures_of(display)}
    for name, result in comparison.items():
        arrays |= arrays_of(result, f"{name}/")
    return zipped(arrays)


Writer = Callable[[Compared, Display], bytes]
WRITERS: Mapping[str, Writer] = {".html": _html, ".png": comparison_png, ".json": _json, ".npz": _npz}
"""Suffix -> writer of the whole file's content; a suffix that is not here is an error."""
