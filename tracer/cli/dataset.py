"""``fxplain explain-all``: a folder of pictures or tensors, or a file of texts, explained into a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fxplain.cli.explain import Wanted
from fxplain.cli.methods import parse_layers, parse_methods
from fxplain.cli.options import Ask
from fxplain.errors import InputError
from fxplain.explainer.names import parse_target

if TYPE_CHECKING:
    from fxplain.adapters.loaded import Loaded

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
TENSORS = (".pt", ".npz", ".npy", ".safetensors")


@dataclass(frozen=True)
class Entry:
    """One input: a picture or tensors in a file, or a text."""

    key: str
    image: Path | None = None
    tensors: Path | None = None
    text: str | None = None


@dataclass(frozen=True)
class Found:
    """What was explained, and of what."""

    loaded: Loaded
    entries: Sequence[Entry]
    records: Any
    """:class:`fxplain.Explanations`."""
    method: str


def entries_of(data: Path) -> list[Entry]:
    """The entries of a folder (by their paths, in order) or of a file with one text a line.

    Raises:
        InputError: there is none.
    """
    found: list[Entry] = []
    if data.is_dir():
        for path in sorted(path for path in data.rglob("*") if path.is_file()):
            key = path.relative_to(data).as_posix()
            if path.suffix.lower() in PICTURES:
                found.append(Entry(key, image=path))
            elif path.suffix.lower() in TENSORS:
                found.append(Entry(key, tensors=path))
    elif data.suffix.lower() in PICTURES and data.is_file():
        found = [Entry(data.name, image=data)]
    elif data.suffix.lower() in TENSORS and data.is_file():
        found = [Entry(data.name, tensors=data)]
    elif data.is_file():
        lines = _lines(data)
        found = [Entry(f"line {n}", text=line) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        known = ", ".join((*PICTURES, *TENSORS))
        raise InputError(
            "there is nothing to explain",
            where=str(data),
            expected=f"a folder with files {known}, or a file with a text on each line",
            found="no such file or folder" if not data.exists() else "none of these",
        )
    return found


def _lines(data: Path) -> list[str]:
    try:
        return data.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            "the file holds no text", where=str(data), expected="UTF-8, one text a line", found=str(error)
        ) from error


def run_dataset(ask: Ask, wanted: Wanted, data: Path, out: Path, batch_size: int, keep_errors: bool) -> Found:
    """Load the model, explain what is not in the folder yet, and tell how much is."""
    from fxplain import Sample, explain_dataset

    methods, layers = parse_methods(wanted.method), parse_layers(wanted.layers)
    if len(methods) > 1:
        raise InputError(
            "explain-all takes one method", found=wanted.method, hint="run it once for each method"
        )
    entries = entries_of(data)
    loaded = replace(ask, options=ask.options | {"device": _device(ask.options.get("device"))}).load()
    target = parse_target(wanted.target, loaded.labels) if wanted.target is not None else None

    notes: dict[str, str] = {}

    def prepare(entry: Entry) -> Sample:
        image, text = ((entry.image,) if entry.image else ()), ((entry.text,) if entry.text else ())
        inputs, display = loaded.prepare(
            image=image, text=text, input=entry.tensors, decoder_text=ask.decoder_text
        )
        notes.update({note: entry.key for note in display.notes if note not in notes})
        return Sample(inputs, key=entry.key)

    found = explain_dataset(
        loaded.model,
        entries,
        out,
        target,
        methods[0],
        wanted.output,
        layers,
        batch_size=batch_size,
        prepare=prepare,
        keep_errors=keep_errors,
        names=loaded.labels,
    )
    typer.echo(f"explained {len(found)} of {len(entries)}")
    for index, text in found.errors.items():
        typer.echo(f"refused   {entries[index].key}: {text.splitlines()[0]}")
    for note, key in notes.items():
        typer.echo(f"note      {note}" if key in note else f"note      {note} (first: {key})")
    typer.echo(f"wrote     {out}")
    return Found(loaded, entries, found, methods[0])


def _device(named: str | None) -> str | None:
    """``cuda`` is the one of this process where torchrun or accelerate has started several."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if named == "cuda" and local is not None else named


def is_first() -> bool:
    """Whether this process is the only one, or the first of several that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"
