"""What a notebook shows: coloured text and overlays in a box of its own, which changes nothing around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fxplain.attention.records import Attention, Mixing
from fxplain.display import Display
from fxplain.render.pages import page
from fxplain.render.readable import Compared, Explained
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


def comparison_html(comparison: Compared, display: Display) -> str:
    """Several methods: the page in a frame of its own."""
    from fxplain.render.side_by_side import comparison_page

    return page("frame.html.j2", content=comparison_page(comparison, display), title="several methods")


def table_html(
    head: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    notes: Iterable[str] = (),
    marked: Sequence[str] = (),
) -> str:
    """A table whose styles hold inside it alone. Cells that hold one of ``marked`` have it as their class."""
    values = {"head": head, "heads": heads, "rows": list(rows), "notes": list(notes), "marked": marked}
    return page("notebook_table.html.j2", **values)


def steps_html(head: str, steps: Sequence[Attention | Mixing], notes: Iterable[str] = ()) -> str:
    """Attentions and mixing steps as a table; what is in no row is left out."""
    heads = ("layer", "kind", "queries", "keys", "heads", "size", "module", "source")
    rows = [
        (
            "" if step.layer is None else str(step.layer),
            (step.kind or "mixing").replace("_", "-"),
            step.queries.name,
            step.keys.name,
            str(step.heads) if isinstance(step, Attention) else "",
            f"{step.queries.size} x {step.keys.size}",
            step.module or "the model itself",
            step.source,
        )
        for step in steps
    ]
    return table_html(head, heads, rows, notes)
