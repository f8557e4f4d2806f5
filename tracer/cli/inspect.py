"""``fxplain inspect``: the table of attentions, the census, the streams; or the graph as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fxplain.attention.records import Attention, Mixing
from fxplain.cli.options import Ask, Form, tell, working
from fxplain.errors import InputError, OutputError

if TYPE_CHECKING:
    from fxplain import Traced
    from fxplain.adapters import Loaded

APPROXIMATE = "~"
LEGEND = "  ~ approximate: a linear step that no paper has a rule for; gradient times contribution weighs it"

_SUFFIXES = {
    ".json": Form.json,
    ".dot": Form.dot,
    ".gv": Form.dot,
    ".graphml": Form.graphml,
    ".html": Form.html,
}


@dataclass(frozen=True)
class Wanted:
    """The prediction whose relevance the page has."""

    target: str | None = None
    output: str | None = None
    method: str = "relevancy"


def run_inspect(
    ask: Ask, form: Form | None, out: Path | None, why: str | None = None, wanted: Wanted | None = None
) -> None:
    """Load, trace on the given or made-up inputs, and show what was found; ``why``: of one node."""
    from fxplain import trace

    form = Form.table if why is not None else form or _form_of(out)
    if out is not None:
        from fxplain.files import check_folder

        check_folder(out)
    loaded = ask.load()
    inputs, notes = ask.example(loaded)
    with working("capturing the model and finding its attentions"):
        traced = trace(loaded.model, inputs)
    if why is not None:
        text = str(traced.why(why))
    elif form is Form.table:
        text = overview(loaded.name, traced, notes)
    elif form is Form.html:
        tell(notes)
        with working("drawing"):
            text = _page(ask, loaded, traced, inputs, wanted or Wanted())
    else:
        from fxplain.render.graph.files import graph_text

        tell(notes)
        text = graph_text(traced.graph, form.value, loaded.name)
    if out is None and form is Form.html:  # nobody wants a page in the terminal
        from fxplain.adapters.names import file_stem

        out = Path(f"{file_stem(loaded.name)}-attentions.html")
    if out is None:
        typer.echo(text.rstrip("\n"))
        return
    from fxplain.files import write_whole

    write_whole(out, text if text.endswith("\n") else text + "\n")
    typer.echo(f"wrote {out}")


def _page(ask: Ask, loaded: Loaded, traced: Traced, inputs: Any, wanted: Wanted) -> str:
    """The graph to look at; with the maps on what a person has given, not on made-up inputs."""
    if not ask.has_inputs:
        if wanted.target is not None:
            raise InputError(
                "a target is of a prediction on inputs",
                expected="--text, --image, --input, ...",
                found="none",
            )
        return traced.page(title=loaded.name).html
    from fxplain.explainer.handed import shown_by_space
    from fxplain.explainer.names import named_target

    target = named_target(wanted.target, loaded.labels)
    _, display = ask.prepare(loaded)
    batch = max(map(len, (*display.tokens.values(), *display.images.values())), default=1)
    shown = shown_by_space(display, traced.spaces, batch)
    how: Any = {"output": wanted.output, "method": wanted.method}
    return traced.page(inputs, target, display=shown, title=loaded.name, **how).html


def _form_of(out: Path | None) -> Form:
    if out is None or out.suffix.lower() in (".txt", ""):
        return Form.table
    form = _SUFFIXES.get(out.suffix.lower())
    if form is None:
        raise OutputError(
            f"the suffix of {out.name!r} is of no form that inspect writes",
            expected=", ".join([*_SUFFIXES, ".txt"]),
            found=out.suffix,
            hint="say the form with --format",
        )
    return form


def overview(name: str, traced: Traced, prepared: Iterable[str]) -> str:
    """All that inspect prints, as text."""
    from fxplain.attention.notes import mixing_note

    captured = traced.captured
    lines = [
        f"{name}: {_count(len(traced.attentions), 'attention')}",
        f"captured by {captured.strategy}; graph and model differ by {captured.verified:.1e} at most",
    ]
    if traced.steps:
        streams = [(str(s.size), s.name) for s in traced.streams]
        lines += ["", *_steps(traced), *([LEGEND] if traced.mixings else [])]
        lines += ["", "Streams", *table(("tokens", "stream"), streams)]
    others = [entry for entry in traced.census if entry.role != "attention"]
    head = "Not attention" if others else "Nothing else in the model looks like attention."
    lines += ["", head]
    for entry in others:
        lines.append(f"  {entry.op}  {entry.role}: {entry.reason}")
        lines.append(f"    {entry.module or 'the model itself'}  {entry.source}")
    told = {mixing_note(mixing) for mixing in traced.mixings}  # the table has them already
    notes = dict.fromkeys((*prepared, *(note for note in traced.notes if note not in told)))
    return "\n".join([*lines, *([""] if notes else []), *(f"note: {note}" for note in notes)])


def shorter(spaces: Sequence[str]) -> dict[str, str]:
    """The last parts of dotted names, where they tell the spaces apart: whole paths make a table too wide.

    Example:
        >>> shorter(("a.embed.cls_token", "pixel_values", "b.out", "c.out"))
        {'a.embed.cls_token': 'cls_token', 'pixel_values': 'pixel_values', 'b.out': 'b.out', 'c.out': 'c.out'}
    """
    last = [name.rpartition(".")[2] for name in spaces]
    return {name: end if last.count(end) == 1 else name for name, end in zip(spaces, last, strict=True)}


def _steps(traced: Traced) -> list[str]:
    """Attentions and mixings in order of execution, as a table; a column that is empty throughout is left
    out."""
    names = shorter([space.name for space in traced.spaces])

    def short(name: str) -> str:
        for space in sorted(names, key=len, reverse=True):
            name = name.replace(space, names[space])
        return name

    heads = ("", "layer", "kind", "queries", "keys", "heads", "size", "windows", "how", "module")
    rows = [_row(step, short) for step in traced.steps]
    used = [any(row[place] for row in rows) for place in range(len(heads))]
    return table([*compress(heads, used)], [tuple(compress(row, used)) for row in rows])


def _row(step: Attention | Mixing, short: Callable[[str], str]) -> tuple[str, ...]:
    size = f"{step.queries.size} x {step.keys.size}"
    module = step.module or "(the model itself)"
    streams = (short(step.queries.name), short(step.keys.name))
    if isinstance(step, Mixing):
        return (
            APPROXIMATE,
            "" if step.layer is None else str(step.layer),
            (step.kind or "mixing").replace("_", "-"),
            *streams,
            "",
            size,
            "",
            step.op,
            module,
        )
    windows = f"{step.windows} of {step.window[0]} x {step.window[1]}" if step.windows > 1 else ""
    how = "fused" if step.fused else step.normaliser
    return (
        str(step.index),
        str(step.layer),
        step.kind.replace("_", "-"),
        *streams,
        str(step.heads),
        size,
        windows,
        how,
        module,
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns, as wide as what is in them.

    Example:
        >>> print("\\n".join(table(("a", "b"), [("longer", "1")])))
          a       b
          longer  1
    """
    every = [tuple(heads), *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(heads))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in every)
    return [f"  {line}".rstrip() for line in lines]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
