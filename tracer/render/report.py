"""One page that a person reads: what was explained, how far to trust it, and where the relevance lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fxplain.display import Display
from fxplain.render.colours import Scale, css_gradient, kind_name
from fxplain.render.marks import Mark
from fxplain.render.overlay import Overlay, data_uri, overlays
from fxplain.render.pages import page
from fxplain.render.readable import Explained
from fxplain.render.scales import together
from fxplain.render.series.track import Track, tracks
from fxplain.render.shown import readout_words, score_of, sharpness, shown
from fxplain.render.strips import Strip, strips
from fxplain.render.text_page import ColouredText, coloured_texts


@dataclass(frozen=True)
class Image:
    """An overlay as the page shows it."""

    space: str
    label: str
    original: str | None
    """``data:`` address of the untouched picture; None for the frames of a video."""
    blended: str
    scale: Scale
    gradient: str
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Share:
    """How much of a sample's relevance lies in one space."""

    space: str
    size: int
    total: float
    percent: str


@dataclass(frozen=True)
class Sample:
    """All that the page shows of one sample."""

    caption: str
    target: str
    question: str
    """What was explained, in words."""
    score: float
    readout: str
    images: tuple[Image, ...]
    texts: tuple[ColouredText, ...]
    strips: tuple[Strip, ...]
    shares: tuple[Share, ...]
    silent: tuple[str, ...]
    """Spaces without any relevance."""
    tracks: tuple[Track, ...] = ()
    sharpness: str = ""
    """How much the relevance is gathered in few tokens."""


def report(result: Explained, display: Display) -> str:
    """The whole result as one HTML page that loads nothing from anywhere."""
    samples = [sample_of(result, display, i) for i in range(result.batch)]
    return page(
        "report.html.j2",
        title=display.title or "fxplain",
        result=result,
        samples=samples,
        cards=None,
        notes=[*display.notes, *result.notes],
        kinds={kind: kind_name(kind) for kind in dict.fromkeys(a.kind for a in result.attentions)},
        kind_name=kind_name,
    )


def gallery(title: str, samples: Sequence[Sample], notes: Sequence[str], facts: Mapping[str, object]) -> str:
    """Many samples as one page of small cards.

    Args:
        title: of the page.
        samples: what each card shows.
        notes: what a reader must know.
        facts: name -> value, at the head of the page.
    """
    return page(
        "report.html.j2", title=title, samples=samples, notes=notes, cards=facts, kinds={}, result=None
    )


def sample_of(result: Explained, display: Display, i: int) -> Sample:
    """One sample as a page shows it."""
    pictures = overlays(result, display, i)
    texts = coloured_texts(result, display, i)
    lines = tracks(result, display, i)
    drawn = {name for picture in pictures for name in picture.spaces}
    drawn |= {text.space for text in texts} | {line.space for line in lines}
    return Sample(
        caption=display.caption(i) or (f"sample {i}" if result.batch > 1 else ""),
        target=display.target_name(result.target, i),
        question=display.question(result.questions, i),
        score=score_of(result, i),
        readout=readout_words(result, i),
        images=tuple(_image(picture) for picture in pictures),
        texts=tuple(texts),
        strips=tuple(strips(result, i, drawn)),
        shares=_shares(result, i),
        silent=tuple(name for name in result.relevance if shown(result, name, i).empty),
        tracks=tuple(lines),
        sharpness=str(sharpness(result, i) or ""),
    )


def _image(overlay: Overlay) -> Image:
    return Image(
        space=overlay.space,
        label=overlay.label,
        original=None if overlay.frame else data_uri(overlay.picture),
        blended=data_uri(overlay.blended),
        scale=overlay.scale,
        gradient=css_gradient(overlay.scale),
        marks=overlay.marks,
    )


def _shares(result: Explained, sample: int) -> tuple[Share, ...]:
    """The spaces that hold relevance, by how much; nothing to compare if there is only one."""
    groups = [
        (names, [shown(result, name, sample) for name in names])
        for names in together(result, result.relevance)
    ]
    totals = [
        (names, parts, sum(part.total for part in parts))
        for names, parts in groups
        if not all(part.empty for part in parts)
    ]
    whole = sum(abs(total) for _, _, total in totals)
    if len(totals) < 2 or whole == 0.0:
        return ()
    return tuple(
        Share(
            names[0] if len(names) == 1 else parts[0].space.source,
            sum(part.space.size for part in parts),
            total,
            f"{abs(total) / whole * 100:.1f}",
        )
        for names, parts, total in totals
    )
