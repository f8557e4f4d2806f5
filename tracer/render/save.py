"""A result on disk: the suffix picks the form, and a file is written whole or not at all."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from torch import Tensor

from fxplain.attention.records import Attention
from fxplain.display import Display, Series
from fxplain.files import save_as
from fxplain.render.colours import to_array
from fxplain.render.readable import Explained
from fxplain.render.shown import Sharpness, sharpness
from fxplain.render.words import TokenText
from fxplain.run.combined import Combined

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "fxplain result 2"
Writer = Callable[[Explained, Display], bytes]


def save(result: Explained, path: str | os.PathLike[str], display: Display | None = None) -> None:
    """Write a result; see :meth:`fxplain.result.Result.save`.

    Raises:
        OutputError: unknown suffix, no such folder, nothing to draw, or the disk refuses.
    """
    save_as("a result", path, WRITERS, result, display or Display())


def _html(result: Explained, display: Display) -> bytes:
    from fxplain.render.report import report

    return report(result, display).encode("utf-8")


def _png(result: Explained, display: Display) -> bytes:
    from fxplain.render.picture import picture_png, to_png
    from fxplain.render.series.figure import series_figure

    figure = None if display.images else series_figure(result, display)
    return picture_png(result, display) if figure is None else to_png(figure)


def json_file(result: Explained, display: Display, more: Mapping[str, Any] | None = None) -> bytes:
    """The content of a ``.json`` file; ``more`` facts take the place of those of the same names."""
    drawn = {"images": _drawn(display), "lines": _lines(display)}
    facts = result_json(result, display) | drawn | dict(more or {})
    return (json.dumps(facts, allow_nan=False, ensure_ascii=True, indent=1) + "\n").encode("ascii")


def result_json(result: Explained, display: Display) -> dict[str, Any]:
    """The facts and the relevance, as plain JSON values."""
    facts = result_facts(result, display)
    for space in facts["spaces"]:
        space["relevance"] = plain(result.relevance[space["name"]])
    return facts | {"inputs": plain(result.inputs)}


def _laid(display: Display) -> dict[str, Any]:
    """Pictures of several sizes that share a space, with the token at each place."""
    from fxplain.render.overlay import data_uri

    return {
        name: [{"picture": data_uri(one.picture), "tokens": one.tokens.tolist()} for one in pictures]
        for name, pictures in display.laid.items()
    }


def _drawn(display: Display) -> dict[str, Any]:
    """The pictures that are shown as addresses that hold them; those of a video frame by frame."""
    from fxplain.render.overlay import data_uri

    def drawn(picture: Any) -> Any:
        array = np.asarray(picture, dtype=np.uint8)
        return [data_uri(frame) for frame in array] if array.ndim == 4 else data_uri(array)

    return {name: [drawn(one) for one in pictures] for name, pictures in display.images.items()}


def _lines(display: Display) -> dict[str, Any]:
    """The values of sounds and series: bytes of float32, least byte first, as letters."""

    def letters(one: Series) -> dict[str, Any]:
        values = np.ascontiguousarray(one.values, dtype="<f4")
        return {"shape": list(values.shape), "float32": base64.b64encode(values.tobytes()).decode("ascii")}

    return {name: [letters(one) for one in several] for name, several in display.series.items()}


def npz_file(result: Explained, display: Display, more: Mapping[str, Any] | None = None) -> bytes:
    """The content of an ``.npz`` file."""
    facts = result_facts(result, display) | dict(more or {})
    return zipped({"facts": as_text(facts), **arrays_of(result), **pictures_of(display)})


def arrays_of(result: Explained, under: str = "") -> dict[str, Any]:
    """The score and the relevance of token spaces and input elements, by names that begin with ``under``."""
    found = {f"{under}relevance/{member(name)}": to_array(v) for name, v in result.relevance.items()}
    found |= {f"{under}inputs/{member(name)}": to_array(v) for name, v in result.inputs.items()}
    return {f"{under}score": to_array(result.score), **found}


def pictures_of(display: Display) -> dict[str, Any]:
    """The pictures, sounds and series that are shown, by names of members."""
    found = {
        f"image/{member(name)}/{i}": np.asarray(picture, dtype=np.uint8)
        for name, pictures in display.images.items()
        for i, picture in enumerate(pictures)
    }
    return found | {
        f"line/{member(name)}/{i}": np.asarray(one.values, dtype=np.float32)
        for name, several in display.series.items()
        for i, one in enumerate(several)
    }


def as_text(facts: Mapping[str, Any]) -> Any:
    """Facts as an array that holds their JSON."""
    return np.array(json.dumps(facts, allow_nan=False, ensure_ascii=True))


def safetensors_file(result: Explained, display: Display, more: Mapping[str, Any] | None = None) -> bytes:
    """The content of a ``.safetensors`` file; the facts are in its metadata."""
    from safetensors.numpy import save as tensors_of

    arrays = {**arrays_of(result), **pictures_of(display)}
    told = result_facts(result, display) | dict(more or {})
    facts = json.dumps(told, allow_nan=False, ensure_ascii=True)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return tensors_of(whole, {"fxplain": facts})


def zipped(arrays: Mapping[str, Any]) -> bytes:
    """The content of an ``.npz`` file, which loads without pickle."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def member(name: str) -> str:
    """A space's name as part of a zip member's name: no path in it."""
    return name.replace("/", "_").replace("\\", "_")


WRITERS: Mapping[str, Writer] = {
    ".html": _html,
    ".png": _png,
    ".json": json_file,
    ".npz": npz_file,
    ".safetensors": safetensors_file,
}
"""Suffix -> writer of the whole file's content; a suffix that is not here is an error."""


class Detailed(Protocol):
    """A result with more to tell than itself: an answer of several tokens, or several answers."""

    @property
    def result(self) -> Explained: ...

    @property
    def display(self) -> Display: ...

    def facts(self) -> dict[str, Any]: ...


Shown = TypeVar("Shown", bound=Detailed)


def writers_of(
    page: Callable[[Shown], str], figure: Callable[[Shown], Figure]
) -> dict[str, Callable[[Shown], bytes]]:
    """Suffix -> writer, as :data:`WRITERS`, for a page and a figure that show more than a result."""

    def png(shown: Shown) -> bytes:
        from fxplain.render.picture import to_png

        return to_png(figure(shown))

    return {
        ".html": lambda shown: page(shown).encode("utf-8"),
        ".png": png,
        ".json": lambda shown: json_file(shown.result, shown.display, shown.facts()),
        ".npz": lambda shown: npz_file(shown.result, shown.display, shown.facts()),
        ".safetensors": lambda shown: safetensors_file(shown.result, shown.display, shown.facts()),
    }


def result_facts(result: Explained, display: Display) -> dict[str, Any]:
    """All but the relevance itself, as plain JSON values."""
    return {
        "format": FORMAT,
        "title": display.title,
        "method": result.method,
        "output": result.output,
        "target": _target(result.target),
        "target_names": [display.target_name(result.target, i) for i in range(result.batch)],
        "questions": [display.question(result.questions, i) for i in range(len(result.questions))],
        "probabilities": [question.probability for question in result.questions],
        "asked": [plain(asdict(question)) for question in result.questions],
        "score": plain(result.score),
        "sharpness": [None if one is None else asdict(one) for one in _sharp(result)],
        "dtype": str(result.score.dtype).removeprefix("torch."),
        "aside": result.aside,
        "mode": result.mode,
        "verified": plain(result.verified),
        "notes": [*display.notes, *result.notes],
        "captions": [display.caption(i) for i in range(result.batch)],
        "readout": plain(result.readout),
        "spaces": [plain(asdict(space)) for space in result.spaces],
        "streams": [plain(asdict(stream)) for stream in result.streams],
        "attentions": [_attention(a) for a in result.attentions],
        "tokens": {name: plain(texts) for name, texts in display.tokens.items()},
        "marks": {name: [_marks(texts) for texts in samples] for name, samples in display.tokens.items()},
        "turns": plain(display.turns),
        "seen": plain(display.seen),
        "frames": plain(display.frames),
        "times": plain(display.times),
        "laid": _laid(display),
        "series": {name: [_axis(one) for one in several] for name, several in display.series.items()},
        "shown_notes": [*display.notes],
        "labels": _labels(result, display),
    }


def _sharp(result: Explained) -> list[Sharpness | None]:
    return [sharpness(result, sample) for sample in range(result.batch)]


def _marks(texts: Sequence[str]) -> dict[str, Any] | None:
    """What texts of tokens say beside their letters; None where they are plain."""
    if not all(isinstance(text, TokenText) for text in texts):
        return None
    written = [text for text in texts if isinstance(text, TokenText)]
    return {
        "special": [i for i, text in enumerate(written) if text.special],
        "read_as": {str(i): text.read_as for i, text in enumerate(written) if text.read_as},
    }


def _axis(series: Series) -> dict[str, Any]:
    """A series without its values."""
    facts = {field.name: getattr(series, field.name) for field in fields(series) if field.name != "values"}
    return {name: plain(value) for name, value in facts.items()}


def _target(target: Any) -> Any:
    """A target, sums of targets written out."""
    if isinstance(target, (tuple, list)) and not all(isinstance(one, int) for one in target):
        return [_target(one) for one in target]
    if isinstance(target, Combined):
        return {"sum": [{**asdict(term), "target": plain(term.target)} for term in target.terms]}
    return plain(target)


def _labels(result: Explained, display: Display) -> dict[str, str]:
    """The names of what was asked about; a vocabulary has many others."""
    asked = [
        q for question in result.questions for q in (question, *(part.question for part in question.parts))
    ]
    names = {question.label: question.named(display.labels).name for question in asked if question.index}
    return {str(index): name for index, name in names.items() if name}


def _attention(attention: Attention) -> dict[str, Any]:
    # streams are written once, under "streams"
    facts: dict[str, Any] = plain(asdict(attention))
    return facts | {"queries": attention.queries.name, "keys": attention.keys.name}


def plain(value: Any) -> Any:
    """Any value as JSON knows it; NaN and infinities become null, what has no JSON form its text."""
    if isinstance(value, Tensor):
        return plain(to_array(value).tolist())
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
