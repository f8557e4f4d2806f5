"""What a notebook shows: coloured text and overlays in a box of its own, which changes nothing around it."""

from __future__ import annotations

from fxplain.display import Display
from fxplain.render.pages import page
from fxplain.render.readable import Explained
from fxplain.render.report import sample_of

MOST = 8
"""Samples that are shown; a page shows all."""


def explanation_html(result: Explained, display: Display) -> str:
    """An explanation as HTML whose styles hold inside it alone; nothing in it runs or is loaded."""
    return page(
        "notebook.html.j2",
        title=display.title,
        result=result,
        samples=[sample_of(result, display, i) for i in range(min(result.batch, MOST))],
        hidden=max(result.batch - MOST, 0),
        notes=[*display.notes, *result.notes],
    )
