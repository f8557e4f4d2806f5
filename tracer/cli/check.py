"""``fxplain check``: the verdict on one model; exit code 1 where something is not understood."""

from __future__ import annotations

import typer

from fxplain.cli.options import Ask, working
from fxplain.explainer.names import parse_target


def run_check(ask: Ask, target: str | None, output: str | None) -> None:
    """Load, trace and explain on the given or made-up inputs, and print what holds and what does not."""
    from fxplain.verdict import check

    loaded = ask.load()
    wanted = parse_target(target, loaded.labels) if target is not None else None
    inputs, display = ask.prepare(loaded) if ask.has_inputs else (loaded.example(), None)
    with working("capturing, finding attention and explaining"):
        verdict = check(loaded.model, inputs, wanted, output)
    typer.echo(f"{loaded.name}: {verdict}")
    notes = verdict.traced.notes if verdict.traced is not None else ()
    prepared = display.notes if display is not None else ()
    for note in dict.fromkeys((*loaded.notes, *prepared, *notes)):
        typer.echo(f"note: {note}")
    if not verdict.understood:
        raise typer.Exit(1)
