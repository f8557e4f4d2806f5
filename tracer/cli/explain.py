"""``fxplain explain``: one explanation, written as files, and what it says in a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fxplain.attribution.prediction import Mode
from fxplain.cli.methods import parse_layers, parse_methods
from fxplain.cli.options import Ask, working
from fxplain.comparison import Comparison
from fxplain.errors import InputError, OutputError
from fxplain.explainer.explainer import Explainer
from fxplain.explainer.explanation import Explanation
from fxplain.explainer.generated import Generated
from fxplain.explainer.handed import Prepared, unseen
from fxplain.explainer.ranked import Ranked
from fxplain.explanation import knocked_out
from fxplain.laws.table import notes_of_laws
from fxplain.targets import Point, contrast, point

if TYPE_CHECKING:
    from fxplain.display import Display, Look
    from fxplain.result import Result


@dataclass(frozen=True)
class Wanted:
    """What is to be explained, and by what, as it was written on the command line."""

    target: str | None
    method: str
    output: str | None
    layers: str | None
    contrast: str | None = None
    mode: Mode = "auto"
    check: bool = False
    top: int | None = None
    threshold: float | None = None
    point: str | None = None

    def of(self, explainer: Explainer) -> Any:
        """The target, with names looked up."""
        if self.point is not None:
            return point_of(self.point)
        target = explainer.target(self.target)
        return target if self.contrast is None else contrast(target, explainer.target(self.contrast))


def run_explain(
    ask: Ask, wanted: Wanted, out: tuple[Path, ...], generate: int | None = None, look: Look | None = None
) -> None:
    """Load, explain, write, and print what was explained and written."""
    methods = parse_methods(wanted.method)
    _check_asked(wanted, methods, generate)
    for path in out:
        _check_path(path, methods, generate, wanted.top)
    explainer = Explainer(ask.load())
    prepared, answer, display = _answer(explainer, ask, wanted, generate)
    display = display if look is None else replace(display, look=look)
    result = next(iter(answer.values())) if isinstance(answer, Comparison) else answer.result
    what = "answer" if generate is not None else result.method if len(methods) == 1 else "comparison"
    what = what if wanted.top is None else f"{what}-top"
    stem = Path(default_stem(explainer.loaded.name, ask.images, what))
    paths = [path for one in out or (stem,) for path in _expanded(one, display, len(methods) > 1)]
    for path in paths:
        if isinstance(answer, Comparison):
            answer.save(path, display)
        elif isinstance(answer, Generated):
            answer.save(path)
        else:
            answer.save(path, look)
    notes = (*explainer.loaded.notes, *display.notes, *unseen(prepared.display, result))
    if wanted.check:
        laws = explainer.trace(prepared.inputs).laws(prepared.inputs, result)
        notes = (*notes, *notes_of_laws(laws), *knocked_out(result))
    if isinstance(answer, Generated):
        lines = answered(answer, notes)
    elif isinstance(answer, Ranked):
        lines = listed(answer, notes)
    else:
        lines = summary(answer.result if isinstance(answer, Explanation) else answer, display, notes)
    for line in (*lines, *(f"wrote     {path}" for path in paths)):
        typer.echo(line)


def _answer(
    explainer: Explainer, ask: Ask, wanted: Wanted, generate: int | None
) -> tuple[Prepared, Explanation | Generated | Ranked | Comparison, Display]:
    """What is shown of the inputs, the explanation, and what is shown beside it."""
    methods = parse_methods(wanted.method)
    target = wanted.of(explainer)
    prepared = Prepared(*ask.prepare(explainer.loaded))
    how: Any = {"output": wanted.output, "layers": parse_layers(wanted.layers), "mode": wanted.mode}
    if generate is not None:
        with working(f"answering, and explaining by {methods[0]}"):
            said = explainer.generate(prepared, max_new_tokens=generate, method=methods[0], **how)
        return prepared, said, said.display
    with working("capturing the model and finding its attentions"):
        explainer.trace(prepared.inputs)
    with working(f"explaining by {', '.join(methods)}"):
        if len(methods) > 1:
            return prepared, *explainer.compare(prepared, methods=methods, target=target, **how)
        if wanted.top is not None:
            how |= {"threshold": wanted.threshold, "method": methods[0]}
            ranked = explainer(prepared, target=target, top=wanted.top, **how)
            return prepared, ranked, ranked.display
        found = explainer(prepared, target=target, method=methods[0], **how)
    return prepared, found, found.display


def _check_asked(wanted: Wanted, methods: Sequence[str], generate: int | None) -> None:
    """Refuse what does not go together."""
    if wanted.top is not None and (len(methods) > 1 or generate or wanted.contrast or wanted.point):
        raise InputError(
            "with --top the likeliest answers are explained, by one method",
            expected="no --contrast, --point or --generate, and one --method",
            found="several methods" if len(methods) > 1 else "another of them",
        )
    if wanted.threshold is not None and wanted.top is None:
        raise InputError("--threshold is of several answers", expected="--top N beside it", found="no --top")
    if wanted.point is not None and (wanted.target is not None or wanted.contrast is not None):
        raise InputError("--point stands in place of --target", expected="one of them", found="both")
    if generate is None:
        return
    if len(methods) > 1 or wanted.target is not None or wanted.contrast is not None:
        raise InputError(
            "with --generate every token of the answer is explained, by one method",
            expected="no --target, no --contrast, and one --method",
            found="several methods" if len(methods) > 1 else "a target",
        )


def point_of(text: str) -> Point:
    """A point as it is written: ``0.4,0.7``.

    Raises:
        InputError: it is none.
    """
    try:
        across, down = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            "this is no point",
            expected="parts of the picture's width and height from its upper left corner, such as 0.4,0.7",
            found=repr(text),
        ) from error
    return point(across, down)


def listed(answer: Ranked, notes: Iterable[str]) -> list[str]:
    """Several answers, in a line each with what it rests on."""
    lines = []
    for place, one in enumerate(answer):
        caption = one.display.caption(0) or f"sample {answer.samples[place]}"
        rests = ", ".join(f"{token} {token.share:.0%}" for token in one.top(3))
        where = f"{caption}: " if max(answer.samples) else ""
        lines.append(f"{place + 1:>6}    {where}{one.question}")
        lines.append(f"          {rests}")
    lines.append(f"method    {answer.result.method}")
    lines.append(f"verified  graph and model differ by {answer.result.verified:.1e} at most")
    return lines + [f"note      {note}" for note in dict.fromkeys((*notes, *answer.result.notes))]


def answered(answer: Generated, notes: Iterable[str]) -> list[str]:
    """What was answered, and what it rests on, in a line for each token."""
    lines = [f"answer    {answer.text}"]
    for text, one in zip(answer.answer.texts, answer, strict=True):
        rests = ", ".join(f"{token} {token.share:.0%}" for token in one.top(3))
        likely = "" if one.probability is None else f"{one.probability:4.2f}  "
        lines.append(f"{str(text)!r:>14}  {likely}{rests}")
    lines.append(f"method    {answer.result.method}")
    lines.append(f"verified  graph and model differ by {answer.result.verified:.1e} at most")
    return lines + [f"note      {note}" for note in dict.fromkeys((*notes, *answer.result.notes))]


def default_stem(model: str, images: tuple[Path, ...], method: str) -> str:
    """Start of the names of the files written when a person names none."""
    from fxplain.adapters.names import file_stem

    picture = f"-{file_stem(images[0].stem)}" if images else ""
    return f"{file_stem(model)}{picture}-{method}"


def _check_path(path: Path, methods: Sequence[str], generate: int | None, top: int | None = None) -> None:
    """Refuse early what could not be written after all the work."""
    from fxplain.files import check_folder
    from fxplain.render import answer_page, ranked_page, save, side_by_side

    what, writers = "an explanation", list(save.WRITERS)
    if generate is not None:
        what, writers = "an answer", list(answer_page.WRITERS)
    elif top is not None:
        what, writers = "an explanation of several answers", list(ranked_page.WRITERS)
    elif len(methods) > 1:
        what, writers = "a comparison", list(side_by_side.WRITERS)
    suffixes = writers
    if path.suffix and path.suffix.lower() not in suffixes:
        raise OutputError(
            f"{what} cannot be written as {path.name!r}",
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
