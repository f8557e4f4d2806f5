"""``fxplain explain``: one explanation, written as files, and what it says in a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fxplain.attention.records import TokenSpace
from fxplain.cli.methods import parse_layers, parse_methods
from fxplain.cli.options import Ask, working
from fxplain.cli.target import parse_target
from fxplain.errors import OutputError
from fxplain.laws.table import Judgement, notes_of_laws

if TYPE_CHECKING:
    from fxplain.comparison import Comparison
    from fxplain.display import Display
    from fxplain.result import Result


@dataclass(frozen=True)
class Wanted:
    """What is to be explained, and by what, as it was written on the command line."""

    target: str | None
    method: str
    output: str | None
    layers: str | None
    check: bool = False


def run_explain(ask: Ask, wanted: Wanted, out: tuple[Path, ...]) -> None:
    """Load, explain, write, and print what was explained and written."""
    from fxplain import trace

    methods, layers = parse_methods(wanted.method), parse_layers(wanted.layers)
    for path in out:
        _check_path(path, len(methods) > 1)
    loaded = ask.load()
    target = parse_target(wanted.target, loaded.labels) if wanted.target is not None else None
    inputs, display = ask.prepare(loaded)
    with working("capturing the model and finding its attentions"):
        traced = trace(loaded.model, inputs)
    with working(f"explaining by {', '.join(methods)}"):
        answer: Result | Comparison
        checked: tuple[Judgement, ...] = ()
        if len(methods) == 1:
            answer = result = traced.explain(
                inputs, target, methods[0], wanted.output, layers=layers, check=wanted.check
            )
        else:
            answer = traced.compare(inputs, methods, target, wanted.output, layers=layers)
            result = next(iter(answer.values()))
            checked = traced.laws(inputs, result) if wanted.check else ()
    given = {*display.images, *display.tokens}
    display = shown_by_space(display, result.spaces, result.batch)
    stem = default_stem(loaded.name, ask.images, methods[0] if len(methods) == 1 else "comparison")
    paths = [path for one in out or (Path(stem),) for path in _expanded(one, display, len(methods) > 1)]
    for path in paths:
        answer.save(path, display)
    lost = [name for name in given if name not in {space.source for space in result.spaces}]
    more = [f"no token was born from the input {name!r}, so it is not drawn" for name in sorted(lost)]
    more += notes_of_laws(checked)
    for line in summary(answer, display, (*loaded.notes, *display.notes, *more)):
        typer.echo(line)
    for path in paths:
        typer.echo(f"wrote     {path}")


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


def _check_path(path: Path, several: bool) -> None:
    """Refuse early what could not be written after all the work."""
    from fxplain.files import check_folder
    from fxplain.render import save, side_by_side

    suffixes = list(side_by_side.WRITERS if several else save.WRITERS)
    if path.suffix and path.suffix.lower() not in suffixes:
        raise OutputError(
            f"{'a comparison' if several else 'an explanation'} cannot be written as {path.name!r}",
            expected=f"a name that ends in {', '.join(suffixes)}, or has no suffix",
            found=path.suffix,
        )
    check_folder(path)


def _expanded(path: Path, display: Display, several: bool) -> list[Path]:
    """The file itself, or for a name without suffix all forms that fit what there is to show."""
    if path.suffix:
        return [path]
    forms = [".png"] if display.images or several else []
    forms += [".html"] if display.tokens or several or not display.images else []
    return [path.with_name(path.name + form) for form in (*forms, ".json")]


def summary(answer: Result | Comparison, display: Display, notes: Iterable[str]) -> list[str]:
    """What was explained, in a few lines."""
    from fxplain.comparison import Comparison

    several = isinstance(answer, Comparison)
    results = list(answer.values()) if isinstance(answer, Comparison) else [answer]
    result = results[0]
    lines = []
    for sample in range(result.batch):
        caption = display.caption(sample)
        lines.append(f"sample    {sample}{f' ({caption})' if caption else ''}" if result.batch > 1 else "")
        lines.append(f"target    {display.target_name(result.target, sample)} of {result.output}")
        lines.append(f"question  {display.question(result.questions, sample)}")
        lines.append(f"score     {float(result.score[sample]):.6g}")
    lines.append(f"{'methods ' if several else 'method  '}  {', '.join(r.method for r in results)}")
    lines.append(f"verified  graph and model differ by {result.verified:.1e} at most")
    if isinstance(answer, Comparison):
        lines += [f"refused   {name}: {str(why).splitlines()[0]}" for name, why in answer.refused.items()]
    lines += [f"note      {note}" for note in dict.fromkeys((*notes, *answer.notes))]
    return [line for line in lines if line]
