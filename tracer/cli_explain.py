"""``fxplain explain``: one explanation, written as files, and what it says in a few lines."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fxplain.attentions import TokenSpace
from fxplain.cli_options import Ask, working
from fxplain.cli_target import parse_target
from fxplain.errors import MethodError, OutputError

if TYPE_CHECKING:
    from fxplain.render.display import Display
    from fxplain.result import Result


def run_explain(ask: Ask, target: str | None, method: str, output: str | None, out: tuple[Path, ...]) -> None:
    """Load, explain, write, and print what was explained and written."""
    from fxplain import trace
    from fxplain.method_table import methods

    check_method(method, methods())
    for path in out:
        _check_path(path)
    loaded = ask.load()
    wanted = parse_target(target, loaded.labels) if target is not None else None
    inputs, display = ask.prepare(loaded)
    with working("capturing the model and finding its attentions"):
        traced = trace(loaded.model, inputs)
    with working(f"explaining by {method}"):
        result = traced.explain(inputs, target=wanted, method=method, output=output)
    given = {*display.images, *display.tokens}
    display = shown_by_space(display, result.spaces, result.batch)
    stem = default_stem(loaded.name, ask.images, method)
    paths = [path for one in out or (Path(stem),) for path in _expanded(one, display)]
    for path in paths:
        result.save(path, display)
    lost = [name for name in given if name not in {space.source for space in result.spaces}]
    more = [f"no token was born from the input {name!r}, so it is not drawn" for name in sorted(lost)]
    for line in summary(result, display, (*loaded.notes, *result.notes, *more)):
        typer.echo(line)
    for path in paths:
        typer.echo(f"wrote     {path}")


def check_method(method: str, known: Mapping[str, str]) -> None:
    """Refuse an unknown method before anything is loaded.

    Raises:
        MethodError: with the names that there are.
    """
    if method not in known:
        close = difflib.get_close_matches(method, list(known), n=1)
        raise MethodError(
            f"there is no method named {method!r}",
            expected=f"one of {', '.join(known)}",
            found=method,
            hint=f"did you mean {close[0]!r}?" if close else "fxplain methods lists them",
        )


def shown_by_space(display: Display, spaces: Iterable[TokenSpace], batch: int) -> Display:
    """Hang pictures and texts, known by the name of their input, on the token spaces born from that input.

    What there is one of (a picture that is compared with several texts) is shown with every sample.
    """
    born = [space for space in spaces if space.origin == "input"]

    def renamed(by_input: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        found = {space.name: by_input[space.source] for space in born if space.source in by_input}
        return {name: list(shown) * batch if len(shown) == 1 else shown for name, shown in found.items()}

    captions = list(display.captions) * batch if len(display.captions) == 1 else display.captions
    return replace(display, images=renamed(display.images), tokens=renamed(display.tokens), captions=captions)


def default_stem(model: str, images: tuple[Path, ...], method: str) -> str:
    """Start of the names of the files written when a person names none."""
    from fxplain.adapters.names import file_stem

    picture = f"-{file_stem(images[0].stem)}" if images else ""
    return f"{file_stem(model)}{picture}-{method}"


def _check_path(path: Path) -> None:
    """Refuse early what could not be written after all the work."""
    from fxplain.render.save import WRITERS, check_folder

    if path.suffix and path.suffix.lower() not in WRITERS:
        raise OutputError(
            f"an explanation cannot be written as {path.name!r}",
            expected=f"a name that ends in {', '.join(WRITERS)}, or has no suffix",
            found=path.suffix,
        )
    check_folder(path)


def _expanded(path: Path, display: Display) -> list[Path]:
    """The file itself, or for a name without suffix all forms that fit what there is to show."""
    if path.suffix:
        return [path]
    forms = [".png"] if display.images else []
    forms += [".html"] if display.tokens or not display.images else []
    return [path.with_name(path.name + form) for form in (*forms, ".json")]


def summary(result: Result, display: Display, notes: Iterable[str]) -> list[str]:
    """What was explained, in a few lines."""
    lines = []
    for sample in range(result.batch):
        caption = display.caption(sample)
        lines.append(f"sample    {sample}{f' ({caption})' if caption else ''}" if result.batch > 1 else "")
        lines.append(f"target    {display.target_name(result.target, sample)} of {result.output}")
        lines.append(f"score     {float(result.score[sample]):.6g}")
    lines.append(f"method    {result.method}")
    lines.append(f"verified  graph and model differ by {result.verified:.1e} at most")
    lines += [f"note      {note}" for note in dict.fromkeys(notes)]
    return [line for line in lines if line]
