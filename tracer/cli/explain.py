"""``fxplain explain``: one explanation, written as files, and what it says in a few lines."""

from __future__ import annotations

import json
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
from fxplain.explainer.answer import named as by_name
from fxplain.explainer.explainer import Explainer
from fxplain.explainer.explanation import Explanation
from fxplain.explainer.generated import Generated
from fxplain.explainer.handed import Prepared, on_axis, unseen
from fxplain.explainer.ranked import Ranked
from fxplain.explanation import knocked_out
from fxplain.laws.table import notes_of_laws
from fxplain.render.shown import sharpness
from fxplain.targets import Point, contrast, point
from fxplain.targets import log_probability as log_probability_of

if TYPE_CHECKING:
    from fxplain.display import Display, Look
    from fxplain.result import Result


@dataclass(frozen=True)
class Answering:
    """An answer whose tokens are explained: the model's own, or one that is given."""

    tokens: int | None = None
    """Of the model's own, at most."""
    text: str | None = None
    settings: str | None = None
    """JSON for the model's own ``generate``."""
    into: str | None = None

    def __bool__(self) -> bool:
        return self.tokens is not None or self.text is not None

    @property
    def given(self) -> dict[str, Any]:
        """The settings.

        Raises:
            InputError: they are no JSON object.
        """
        try:
            found = json.loads(self.settings or "{}")
        except ValueError as error:
            raise InputError(
                "--settings is no JSON", expected='{"num_beams": 4}', found=str(error)
            ) from error
        if not isinstance(found, dict):
            raise InputError(
                "--settings is no JSON object", expected='{"num_beams": 4}', found=repr(self.settings)
            )
        return found


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
    answer: Answering = Answering()
    log_probability: bool = False
    verify: bool = False

    def of(self, explainer: Explainer) -> Any:
        """The target, with names looked up."""
        if self.point is not None:
            return point_of(self.point)
        target = explainer.target(self.target)
        if self.log_probability and not self.answer:
            target = log_probability_of(target)
        return target if self.contrast is None else contrast(target, explainer.target(self.contrast))


def run_explain(ask: Ask, wanted: Wanted, out: tuple[Path, ...], look: Look | None = None) -> None:
    """Load, explain, write, and print what was explained and written."""
    methods = parse_methods(wanted.method)
    _check_asked(wanted, methods)
    for path in out:
        _check_path(path, methods, wanted)
    explainer = Explainer(ask.load())
    prepared, answer, display = _answer(explainer, ask, wanted)
    display = display if look is None else replace(display, look=look)
    result = next(iter(answer.values())) if isinstance(answer, Comparison) else answer.result
    what = "answer" if wanted.answer else result.method if len(methods) == 1 else "comparison"
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
    explainer: Explainer, ask: Ask, wanted: Wanted
) -> tuple[Prepared, Explanation | Generated | Ranked | Comparison, Display]:
    """What is shown of the inputs, the explanation, and what is shown beside it."""
    methods = parse_methods(wanted.method)
    target = wanted.of(explainer)
    prepared = Prepared(*ask.prepare(explainer.loaded))
    if ask.axis is not None:
        named = by_name(explainer.model, prepared.inputs)
        prepared = on_axis(Prepared(named, prepared.display), ask.axis)
    how: Any = {"output": wanted.output, "layers": parse_layers(wanted.layers), "mode": wanted.mode}
    how |= {"verify": wanted.verify}
    if wanted.answer:
        return prepared, *_said(explainer, prepared, wanted, how | {"method": methods[0]})
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


def _said(explainer: Explainer, prepared: Prepared, wanted: Wanted, how: Any) -> tuple[Generated, Display]:
    """The answer that is given or the model's own, explained."""
    own = wanted.answer
    how |= {"into": own.into, "log_probability": wanted.log_probability}
    with working(f"{'answering, and ' if own.text is None else ''}explaining by {how['method']}"):
        if own.text is not None:
            said = explainer.explain_generated(prepared, own.text, **how)
        else:
            said = explainer.generate(prepared, max_new_tokens=own.tokens or 1, settings=own.given, **how)
    return said, said.display


def _check_asked(wanted: Wanted, methods: Sequence[str]) -> None:
    """Refuse what does not go together."""
    generate = bool(wanted.answer)
    own = wanted.answer
    if own.text is not None and own.tokens is not None:
        raise InputError("--answer stands in place of --generate", expected="one of them", found="both")
    if (own.settings is not None and own.tokens is None) or (own.into is not None and not own):
        raise InputError("--settings and --into are of an answer", expected="--generate N", found="none")
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
    if not generate:
        return
    if len(methods) > 1 or wanted.target is not None or wanted.contrast is not None:
        raise InputError(
            "with --generate or --answer every token of the answer is explained, by one method",
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
    from fxplain.explainer.generated import rests

    lines = [f"answer    {answer.text}"]
    for text, one, heard in zip(answer.answer.texts, answer, answer.stretches, strict=True):
        likely = "" if one.probability is None else f"{one.probability:4.2f}  "
        where = f"{heard}; " if heard else ""
        lines.append(f"{str(text)!r:>14}  {likely}{where}{rests(one)}")
    lines.append(f"method    {answer.result.method}")
    lines.append(f"verified  graph and model differ by {answer.result.verified:.1e} at most")
    return lines + [f"note      {note}" for note in dict.fromkeys((*notes, *answer.result.notes))]


def default_stem(model: str, images: tuple[Path, ...], method: str) -> str:
    """Start of the names of the files written when a person names none."""
    from fxplain.adapters.names import file_stem

    picture = f"-{file_stem(images[0].stem)}" if images else ""
    return f"{file_stem(model)}{picture}-{method}"


def _check_path(path: Path, methods: Sequence[str], wanted: Wanted) -> None:
    """Refuse early what could not be written after all the work."""
    from fxplain.files import check_folder
    from fxplain.render import answer_page, ranked_page, save, side_by_side

    what, writers = "an explanation", list(save.WRITERS)
    if wanted.answer:
        what, writers = "an answer", list(answer_page.WRITERS)
    elif wanted.top is not None:
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
    forms = [".png"] if display.images or display.series or several else []
    forms += [".html"] if display.tokens or display.series or several or not display.images else []
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
        sharp = None if several else sharpness(result, sample)
        lines.append("" if sharp is None else f"sharpness {sharp}")
    lines.append(f"{'methods ' if several else 'method  '}  {', '.join(r.method for r in results)}")
    lines.append(f"verified  graph and model differ by {result.verified:.1e} at most")
    if isinstance(answer, Comparison):
        lines += [f"refused   {name}: {str(why).splitlines()[0]}" for name, why in answer.refused.items()]
    lines += [f"note      {note}" for note in dict.fromkeys((*notes, *answer.notes))]
    return [line for line in lines if line]
