"""A page for an answer of several tokens: point at one, and what it rests on lights up; and its matrix."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from fxplain.display import Laid, Series
from fxplain.files import save_as
from fxplain.render.colours import kind_name, to_array
from fxplain.render.overlay import data_uri, enlarge
from fxplain.render.pages import page
from fxplain.render.picture import short
from fxplain.render.readable import Answered, Ranged
from fxplain.render.save import writers_of
from fxplain.render.series.track import Track, drawing
from fxplain.render.words import Piece, direction, pieces, special, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FOLD = 160
"""A prompt of more tokens is folded at first."""
_MOST_LABELS = 120
"""Tokens along an axis of the figure that are written out."""


@dataclass(frozen=True)
class Spot:
    """One token as the page draws it."""

    piece: Piece
    column: int
    """Of the matrix; -1 for the answer's last token, which nothing rests on."""
    answer: int
    """Its place in the answer; -1 in the prompt."""
    mark: bool
    """A tokenizer's own mark, always written left to right."""
    overall: str
    """0 to 1, as CSS writes it: how much the whole answer rests on it."""
    turn: str
    """The turn that begins with it."""
    times: int = 1
    """How many equal marks in a row it stands for: places that were kept for a picture."""
    thumb: Block | None = None
    """The picture that stands there."""
    place: tuple[float, float] = (0.0, 0.0)
    """Left and width over a sound or a series, in percent."""


@dataclass(frozen=True)
class Block:
    """The tokens of one input: a text, or a picture with its cells."""

    space: str
    direction: str
    spots: tuple[Spot, ...]
    picture: str = ""
    """``data:`` address."""
    across: int = 0
    """Cells in a row, of tokens with rows and columns."""
    label: str = ""
    """Which of several pictures."""
    track: Track | None = None
    """The sound or series that its tokens lie over."""
    behind: tuple[int, ...] = ()
    """Columns of tokens that lie behind its end, on padding."""


def save(answered: Answered, path: str | os.PathLike[str]) -> None:
    """Write an explained answer; see :meth:`fxplain.Generated.save`.

    Raises:
        OutputError: unknown suffix, no such folder, or the disk refuses.
    """
    save_as("an explained answer", path, WRITERS, answered)


def answer_page(answered: Answered) -> str:
    """The whole page; it loads nothing, and runs one script, which its policy names by its hash."""
    values = np.asarray(to_array(answered.matrix), dtype=np.float32)
    prompt, answer = _blocks(answered, values)
    data = _data(answered, values, prompt)
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return page(
        "answer.html.j2",
        title=answered.display.title or "fxplain",
        answered=answered,
        result=answered.result,
        prompt=prompt,
        answer=answer,
        rows=_rows(answered, values),
        notes=answered.notes,
        likely=_likely(answered),
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        script=script,
        digest=digest,
        kinds={kind: kind_name(kind) for kind in dict.fromkeys(a.kind for a in answered.result.attentions)},
    )


def _data(answered: Answered, values: Any, prompt: Sequence[Block]) -> dict[str, Any]:
    """What the page's script reads."""
    columns = answered.columns
    return {
        "values": base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii"),
        "columns": [_shown(answered, column) for column in columns],
        "special": [i for i, column in enumerate(columns) if _special(answered, column)],
        "columnWords": _column_words(answered),
        "parts": list(answered.parts),
        "groups": _groups(prompt),
        "runs": {
            s.column: list(range(s.column, s.column + s.times)) for b in prompt for s in b.spots if s.thumb
        },
        "answerWords": words(list(answered.answer.texts)),
        "answer": [piece.text for piece in pieces(list(answered.answer.texts))],
        "answerSpecial": [i for i, text in enumerate(answered.answer.texts) if special(text)],
        "questions": list(answered.questions),
        "probabilities": list(answered.probabilities),
        "read": _read(answered),
        "fold": _FOLD,
        "times": _times(answered),
        "axis": next((block.track.axis for block in prompt if block.track is not None), ""),
    }


@cache
def _script() -> str:
    return (files("fxplain.render") / "templates" / "answer.js").read_text(encoding="utf-8")


def _blocks(answered: Answered, values: Any) -> tuple[list[Block], Block]:
    """The prompt, input by input, and the answer."""
    shares = _shares(values).mean(0)
    strong = shares / max(float(shares.max(initial=0.0)), 1e-12)
    by_space: dict[str, list[int]] = {}
    for number, column in enumerate(answered.columns):
        by_space.setdefault(column.space, []).append(number)
    blocks = []
    for space, numbers in by_space.items():
        inside = [n for n in numbers if answered.columns[n].part == "prompt"]
        if inside:
            blocks += _blocks_of(answered, space, inside, strong)
    blocks = _with_thumbs(blocks)
    said = [n for n, column in enumerate(answered.columns) if column.part == "answer"]
    texts = list(answered.answer.texts)
    spots = [
        Spot(piece, said[i] if i < len(said) else -1, i, special(text), "0", "")
        for i, (piece, text) in enumerate(zip(pieces(texts), texts, strict=True))
    ]
    return blocks, Block(answered.answer.space, direction(texts), tuple(spots))


def _blocks_of(answered: Answered, space: str, numbers: Sequence[int], strong: Any) -> list[Block]:
    """The block of one token space; of several pictures, one for each."""
    grid = next(s.grid for s in answered.result.spaces if s.name == space)
    picture, series = answered.display.image(space, 0), answered.display.line(space, 0)
    if series is not None and len(grid) < 2:
        return [_over(series, space, numbers, strong)]
    if space in answered.display.laid:
        return _laid(answered.display.laid[space], space, numbers, strong)
    if picture is None or picture.ndim != 4 or len(grid) != 3 or len(picture) != grid[0]:
        return [_block(answered, space, numbers, strong)]
    found = []
    for step, own in enumerate(np.split(np.asarray(numbers), grid[0])):
        spots = [Spot(Piece("", "", False), int(n), -1, False, f"{strong[n]:.3f}", "") for n in own]
        drawn = data_uri(enlarge(picture[step]))
        label = answered.display.frame(space, step, grid[0])
        found.append(Block(space, "ltr", tuple(spots), drawn, grid[-1], label))
    return found


def _laid(pictures: Sequence[Laid], space: str, numbers: Sequence[int], strong: Any) -> list[Block]:
    """A block for each of several pictures that share a space, with its tokens where they stand."""
    found = []
    for place, one in enumerate(pictures, 1):
        own = [numbers[int(token)] for token in one.tokens.flat]
        spots = tuple(Spot(Piece("", "", False), n, -1, False, f"{strong[n]:.3f}", "") for n in own)
        label = f"picture {place}" if len(pictures) > 1 else ""
        drawn = data_uri(enlarge(one.picture))
        found.append(Block(space, "ltr", spots, drawn, one.tokens.shape[1], label))
    return found


def _over(series: Series, space: str, numbers: Sequence[int], strong: Any) -> Block:
    """Tokens over a sound or series; what lies behind its end is one thing."""
    (first, last), edges = series.ends, series.edges(len(numbers))
    spots, behind = [], []
    for n, left, right in zip(numbers, edges[:-1], edges[1:], strict=True):
        if left >= last - 1e-9 * max(abs(last), 1.0):
            behind.append(n)
            continue
        place = ((left - first) / (last - first) * 100, (min(right, last) - left) / (last - first) * 100)
        spots.append(Spot(Piece("", "", False), n, -1, False, f"{strong[n]:.3f}", "", place=place))
    return Block(space, "ltr", tuple(spots), track=drawing(series, space), behind=tuple(behind))


def _times(answered: Answered) -> list[list[float] | None]:
    """For each column where on the axis of a sound or series its token begins and ends; None on padding."""
    found: list[list[float] | None] = []
    sizes = {space.name: space for space in answered.result.spaces}
    for column in answered.columns:
        series, space = answered.display.line(column.space, 0), sizes[column.space]
        edges: list[float] = []
        if series is not None and len(space.grid) == 1:
            edges = [float(edge) for edge in series.edges(space.size)[column.index :][:2]]
        inside = series is not None and len(edges) == 2 and edges[0] < series.ends[1]
        found.append([round(edge, 4) for edge in edges] if inside else None)
    return found


def _with_thumbs(blocks: Sequence[Block]) -> list[Block]:
    """Equal marks in a row, which keep the place of a picture, as one; and the pictures there, where there
    are as many as such rows."""
    pictures = [block for block in blocks if block.picture]
    folded = [replace(block, spots=_folded(block.spots)) if not block.across else block for block in blocks]
    rows = [spot for block in folded for spot in block.spots if spot.times > 1]
    if len(rows) != len(pictures):
        return folded
    thumbs = iter(pictures)
    return [
        replace(
            block,
            spots=tuple(replace(s, thumb=next(thumbs)) if s.times > 1 else s for s in block.spots),
        )
        for block in folded
    ]


def _folded(spots: Sequence[Spot], least: int = 4) -> tuple[Spot, ...]:
    """Tokens, of which equal marks that stand in a row are one."""
    found: list[Spot] = []
    for _, run in groupby(spots, key=lambda s: (s.piece.text, s.turn) if s.mark else s.column):
        own = list(run)
        found += [replace(own[0], times=len(own))] if len(own) >= least else own
    return tuple(found)


def _groups(blocks: Sequence[Block]) -> dict[int, list[int]]:
    """Column of a mark -> the columns of the picture that stands there."""
    spots = [spot for block in blocks for spot in block.spots if spot.thumb is not None]
    return {s.column: [cell.column for cell in s.thumb.spots] for s in spots if s.thumb is not None}


def _block(answered: Answered, space: str, numbers: Sequence[int], strong: Any) -> Block:
    columns = [answered.columns[n] for n in numbers]
    texts = (answered.display.texts(space, 0) or ())[: len(numbers)]
    grid = next(s.grid for s in answered.result.spaces if s.name == space)
    if len(texts) == len(numbers):
        shown = pieces(list(texts))
    else:
        texts = [""] * len(numbers)
        shown = [Piece("", "", False)] * len(numbers)
    turn, spots = "", []
    for n, column, piece, text in zip(numbers, columns, shown, texts, strict=True):
        begins = column.turn if column.turn != turn else ""
        turn = column.turn
        piece = replace(piece, before="") if begins else piece
        spots.append(Spot(piece, n, -1, special(text), f"{strong[n]:.3f}", begins))
    picture = answered.display.image(space, 0) if len(grid) == 2 else None
    drawn = "" if picture is None or picture.ndim != 3 else data_uri(enlarge(picture))
    across = 0 if any(texts) else (grid[-1] if len(grid) > 1 else 0)
    return Block(space, direction(texts), tuple(spots), drawn, across)


def _read(answered: Answered) -> list[list[int]]:
    """For each token of the answer the columns whose rows were read: they have no relevance of their own."""
    if not answered.result.aside:
        return [[] for _ in answered.answer.texts]
    starts = {space.name: space.start for space in answered.result.spaces}
    places = {starts[column.space] + column.index: n for n, column in enumerate(answered.columns)}
    return [[places[token] for token, _ in rows if token in places] for rows in answered.result.readout]


def _column_words(answered: Answered) -> list[int]:
    """For each column the number of its word; what has no text is a word by itself."""
    numbers: list[int] = []
    columns = answered.columns
    for space in dict.fromkeys(column.space for column in columns):
        own = [column for column in columns if column.space == space]
        texts = (answered.display.texts(space, 0) or ())[: len(own)]
        found = words(list(texts)) if len(texts) == len(own) else list(range(len(own)))
        start = numbers[-1] + 1 if numbers else 0
        numbers += [start + number for number in found]
    return numbers


def _shown(answered: Answered, column: Ranged) -> str:
    """A token's text; of one without, such as a part of a picture, its place in the input."""
    if column.text:
        return pieces([column.text])[0].text
    grid = next((s.grid for s in answered.result.spaces if s.name == column.space), ())
    place = np.unravel_index(column.index, grid) if grid else (column.index,)
    return f"{column.space}[{', '.join(str(int(one)) for one in place)}]"


def _special(answered: Answered, column: Ranged) -> bool:
    texts = answered.display.texts(column.space, 0) or ()
    return column.index < len(texts) and special(texts[column.index])


def _shares(values: Any) -> Any:
    """[answer token, column]: of each row the part of all its relevance; 0 where there is none."""
    sizes = np.abs(values)
    return sizes / np.maximum(sizes.sum(-1, keepdims=True), 1e-30)


def _rows(answered: Answered, values: Any, most: int = 5) -> list[dict[str, Any]]:
    """Each token of the answer with what it rests on most."""
    shares = _shares(values)
    found = []
    for place, (row, question) in enumerate(zip(shares, answered.questions, strict=True)):
        first = np.argsort(-row, kind="stable")[:most]
        heard = answered.stretches[place]
        rests = [
            (_shown(answered, answered.columns[n]), f"{row[n] * 100:.0f} %") for n in first if row[n] > 0
        ]
        text = pieces([answered.answer.texts[place]])[0].text
        found.append({"text": text, "question": question, "rests": rests, "stretch": heard})
    return found


def _likely(answered: Answered) -> float | None:
    """How likely the model held the whole answer."""
    found = answered.probabilities
    known = [one for one in found if one is not None]
    return float(np.exp(np.sum(np.log(np.maximum(known, 1e-300))))) if len(known) == len(found) else None


def notebook_html(answered: Answered) -> str:
    """The page in a frame of its own, which changes nothing around it and is not changed by it."""
    return page("frame.html.j2", content=answer_page(answered), title=short(answered.text, 80))


def matrix_figure(answered: Answered) -> Figure:
    """The matrix as cells: a row for each token of the answer, darker where it rests on a token more."""
    from matplotlib.figure import Figure

    values = np.asarray(to_array(answered.matrix))
    rows, across = values.shape
    size = (min(2.0 + 0.22 * across, 40.0), min(1.6 + 0.22 * rows, 40.0))
    figure = Figure(figsize=size, dpi=110, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    cells = axes.imshow(_shares(values) * 100, aspect="auto", cmap="Oranges", interpolation="nearest", vmin=0)
    figure.colorbar(cells, ax=axes, label="% of the token's relevance", shrink=0.8)
    axes.set_ylabel("answer", parse_math=False)
    if across <= _MOST_LABELS:
        names = [short(_shown(answered, column), 14) for column in answered.columns]
        axes.set_xticks(range(across), names, rotation=60, ha="right", size=7, parse_math=False)
    if rows <= _MOST_LABELS:
        names = [short(piece.text, 14) for piece in pieces(list(answered.answer.texts))]
        axes.set_yticks(range(rows), names, size=7, parse_math=False)
    axes.set_title(short(answered.display.title, 80), size=9, loc="left", parse_math=False)
    return figure


WRITERS = writers_of(answer_page, matrix_figure)
