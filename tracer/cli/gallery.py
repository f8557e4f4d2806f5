"""``gallery.html``: what ``fxplain explain-all`` found, one small card for each sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from fxplain.attention.records import TokenSpace
from fxplain.cli.dataset import Found
from fxplain.display import Display
from fxplain.errors import FxplainError
from fxplain.explainer.handed import shown_by_space
from fxplain.explainer.rows import display_of
from fxplain.files import write_whole
from fxplain.many.records import Explained
from fxplain.render.report import Sample, gallery, sample_of
from fxplain.result import Relevance, Result

NAME = "gallery.html"


def write_gallery(found: Found, out: Path, most: int, decoder_text: str | None = None) -> Path:
    """Write the page into the folder of the results.

    Args:
        found: what was explained.
        out: the folder.
        most: how many samples are shown; the page says how many there are.
        decoder_text: as the inputs were prepared with.
    """
    indices = [index for index in found.records if index < len(found.entries)]
    samples = [one for index in indices[:most] for one in _cards(found, index, decoder_text)]
    records = [record for index in indices[:1] for record in found.records[index]]
    left = [f"of {len(indices)} inputs the first {most} are shown (--gallery)"] if most < len(indices) else []
    refused = [
        f"{found.entries[i].key} was refused: {text.splitlines()[0]}"
        for i, text in found.records.errors.items()
    ]
    facts = {
        "samples": len(samples),
        "method": found.method,
        "output": records[0].output if records else "",
    }
    page = gallery(found.loaded.name, samples, [*left, *refused], facts)
    write_whole(out / NAME, page)
    return out / NAME


def _cards(found: Found, index: int, decoder_text: str | None) -> Iterator[Sample]:
    entry = found.entries[index]
    image, text = ((entry.image,) if entry.image else ()), ((entry.text,) if entry.text else ())
    try:
        _, display = found.loaded.prepare(
            image=image, text=text, input=entry.tensors, decoder_text=decoder_text
        )
    except FxplainError:  # the file is gone, or refused as it was before
        display = Display()
    for place, record in enumerate(found.records[index]):
        if record.error:
            continue
        result = _result(record, found.method)
        shown = shown_by_space(display, result.spaces, len(found.records[index]))
        shown = replace(display_of(shown, place), title="", captions=(record.key or f"entry {index}",))
        yield replace(sample_of(result, shown, 0), question=record.question, readout="", silent=())


def _result(record: Explained, method: str) -> Result:
    """A record in the form that pages read; it knows no attentions."""
    spaces, start = [], 0
    for name, grid in record.relevance.items():
        size = math.prod(grid.shape)
        spaces.append(TokenSpace(name, size, start, tuple(grid.shape), "input", name))
        start += size
    starts = {space.name: space.start for space in spaces}
    values = {name: grid.reshape(1, -1) for name, grid in record.relevance.items()}
    read = tuple((starts[name] + place, 1.0) for name, place in record.read if name in starts)
    return Result(
        method=method,
        score=torch.tensor([record.score]),
        target=(record.target,),
        output=record.output,
        relevance=Relevance(values, tuple(spaces)),
        relevancy=None,
        spaces=tuple(spaces),
        streams=(),
        readout=(read,),
        attentions=(),
        verified=record.verified,
        notes=record.notes,
        aside=bool(read),
        inputs={},
    )
