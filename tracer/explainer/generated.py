"""An explained answer: for each of its tokens the relevance of every token of the prompt, and of the answer
so far."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fxplain.display import Display, Series
from fxplain.errors import UnknownNameError
from fxplain.explainer.answer import Answer
from fxplain.explainer.explanation import Explanation
from fxplain.explainer.tokens import TokenRelevance, pandas_library
from fxplain.questions import Part, Question
from fxplain.result import Relevance, Result

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Column:
    """One token that an answer may rest on.

    Args:
        space: its token space, named after the input.
        index: its place there.
        text: what it stands for.
        part: ``prompt``, or ``answer`` if the model has said it.
        turn: whose turn of a conversation it is in; empty where that is not known.
    """

    space: str
    index: int
    text: str
    part: str
    turn: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Generated(Sequence[Explanation]):
    """An explanation of every token of an answer. Made by :meth:`fxplain.Explainer.generate`.

    ``generated[3]`` explains one token, ``generated[3:6]`` and ``generated.span("of France")`` several as
    one.

    Example:
        >>> import fxplain, torch, transformers
        >>> config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=99)
        >>> explainer = fxplain.Explainer(transformers.GPT2LMHeadModel(config).eval())
        >>> generated = explainer.explain_generated({"input_ids": torch.tensor([[7, 3, 12]])}, [5, 9])
        >>> generated.matrix.shape, [column.part for column in generated.columns]
        (torch.Size([2, 4]), ['prompt', 'prompt', 'prompt', 'answer'])
    """

    result: Result
    """All numbers; its samples are the tokens of the answer."""
    display: Display
    """Texts and pictures, by token space."""
    answer: Answer
    """The ids and texts of the answer, and where it stands."""

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(self.answer.texts)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """What the columns of :attr:`matrix` stand for: every token of every input, in order."""
        return tuple(
            self._column(space.name, index)
            for space in self.result.spaces
            if space.origin == "input"
            for index in range(space.size)
        )

    def _column(self, space: str, index: int) -> Column:
        texts = self.display.texts(space, 0) or self._on_axis(space)
        turns = next(iter(self.display.turns.get(space, ())), ())
        said = space == self.answer.space and index >= self.answer.first
        return Column(
            space,
            index,
            str(texts[index]) if index < len(texts) else "",
            "answer" if said else "prompt",
            next((whose for start, stop, whose in turns if start <= index < stop), ""),
        )

    def _on_axis(self, space: str) -> Sequence[str]:
        series = self.display.line(space, 0)
        own = next(one for one in self.result.spaces if one.name == space)
        return () if series is None else _places(series, own.grid)

    def stretch(self, place: int, part: float = 0.5) -> tuple[float, float] | None:
        """Where on the axis of the sound or series one token of the answer lies: the shortest stretch with so
        much of what the token rests on there.

        Args:
            place: of the token in the answer.
            part: of the relevance on the sound, 0 to 1.

        Returns:
            Where it begins and ends, of a sound in seconds; None where there is no sound or series, or
            nothing rests on it.
        """
        from fxplain.render.series.curves import shortest

        for space in self.result.spaces:
            series = self.display.line(space.name, 0)
            if series is not None and len(space.grid) < 2:
                own = self.result.relevance[space.name][place].detach().cpu().float().numpy()
                edges = series.edges(space.size)
                inside = int((edges[:-1] < series.ends[1]).sum())  # padding is never meant
                return shortest(own[:inside], edges[: inside + 1], part)
        return None

    @property
    def stretches(self) -> tuple[str, ...]:
        """[answer token]: where it lies in the sound or series, in words; empty where that is not known."""
        lines = [
            line for space in self.result.spaces if (line := self.display.line(space.name, 0)) is not None
        ]
        found = [self.stretch(place) if lines else None for place in range(len(self))]
        return tuple("" if ends is None else lines[0].stretch(*ends) for ends in found)

    @cached_property
    def matrix(self) -> Tensor:
        """[answer token, column]: the relevance of every token to each token of the answer, without unit."""
        inputs = [space.name for space in self.result.spaces if space.origin == "input"]
        return torch.cat([self.result.relevance[name] for name in inputs], -1)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """[column]: which part of what the model read it belongs to: the answer so far, or an input; each of
        several pictures by itself."""
        frames = {space.name: space.grid for space in self.result.spaces if len(space.grid) == 3}
        laid = {
            (name, int(token)): number
            for name, pictures in self.display.laid.items()
            for number, one in enumerate(pictures, 1)
            for token in one.tokens.flat
            if len(pictures) > 1
        }
        sources = {space.name: space.source for space in self.result.spaces}
        found = []
        for column in self.columns:
            part = "answer so far" if column.part == "answer" else sources[column.space]
            grid = frames.get(column.space, (1,))
            if grid[0] > 1:
                step = column.index // int(np.prod(grid[1:]))
                part = f"{part}, {self.display.frame(column.space, step, grid[0])}"
            elif (column.space, column.index) in laid:
                part = f"{part}, picture {laid[column.space, column.index]}"
            found.append(part)
        return tuple(found)

    @property
    def evidence(self) -> tuple[dict[str, float], ...]:
        """[answer token]: which share of its relevance lies in each part: text, picture, answer so far."""
        names = list(dict.fromkeys(self.parts))
        sizes = self.matrix.abs().double()
        shares = sizes / sizes.sum(-1, keepdim=True).clamp_min(1e-30)
        inside = torch.tensor([[part == name for name in names] for part in self.parts]).double()
        return tuple(dict(zip(names, row, strict=True)) for row in (shares.cpu() @ inside).tolist())

    def top(self, count: int = 10) -> tuple[TokenRelevance, ...]:
        """The tokens that the whole answer rests on most, the first one first."""
        whole: Explanation = self[:]
        return whole.top(count)

    @property
    def scores(self) -> Tensor:
        """[answer token]: what was explained of each."""
        return self.result.score

    @property
    def probabilities(self) -> tuple[float | None, ...]:
        """[answer token]: how likely the model held each."""
        return tuple(_probability(question) for question in self.result.questions)

    @property
    def questions(self) -> tuple[str, ...]:
        """What was explained of each token, in words."""
        return tuple(self.display.question((question,), 0) for question in self.result.questions)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        return (*self.display.notes, *self.result.notes)

    def __len__(self) -> int:
        return len(self.answer.ids)

    def __getitem__(self, place: Any) -> Any:
        """The explanation of one token of the answer, or of several as one: the sum of their scores."""
        places = list(range(len(self)))[place]
        return self._of([places] if isinstance(places, int) else places)

    def __iter__(self) -> Iterator[Explanation]:
        return (self[place] for place in range(len(self)))

    def span(self, text: str) -> Explanation:
        """The explanation of a part of the answer: the sum of the explanations of its tokens.

        Args:
            text: the part; tokens of which it takes only some letters count whole.

        Raises:
            UnknownNameError: the answer has no such part.
        """
        start = self.text.find(text) if text else -1
        if start < 0:
            raise UnknownNameError("the answer has no such part", expected=repr(self.text), found=repr(text))
        ends: list[int] = []
        for own in self.answer.texts:
            ends.append((ends[-1] if ends else 0) + len(own))
        stop = start + len(text)
        inside = [i for i, end in enumerate(ends) if end > start and end - len(self.answer.texts[i]) < stop]
        return self._of(inside)

    def _of(self, places: Sequence[int]) -> Explanation:
        if not places:
            raise UnknownNameError("there is no such part of the answer", found="no token")
        whole = self.result
        chosen = list(places)
        summed = {name: values[chosen].sum(0, keepdim=True) for name, values in whole.relevance.items()}
        asked = [whole.questions[place] for place in chosen]
        parts = tuple(part for question in asked for part in question.parts or (Part(1.0, False, question),))
        one = len(chosen) == 1
        result = replace(
            whole,
            relevance=Relevance(summed, whole.spaces),
            score=whole.score[chosen].sum(0, keepdim=True),
            target=(whole.target[chosen[0]] if one else tuple(whole.target[place] for place in chosen),),
            readout=(tuple(dict.fromkeys(row for place in chosen for row in whole.readout[place])),),
            questions=(asked[0] if one else Question("combined", whole.output, parts=parts),),
            inputs={},
        )
        return Explanation(result, self.display)

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures as plain values, as the ``.json`` file holds it."""
        from fxplain.render.save import result_json

        return result_json(self.result, self.display) | self.facts()

    def facts(self) -> dict[str, Any]:
        """What an answer has beside its result, as plain values."""
        answer = self.answer
        placed = {"space": answer.space, "first": answer.first, "ids": list(answer.ids)}
        special = [bool(getattr(text, "special", False)) for text in answer.texts]
        said = {"texts": [str(text) for text in answer.texts], "special": special}
        return {"answer": placed | said, "questions": list(self.questions)}

    def to_pandas(self) -> pandas.DataFrame:
        """:attr:`matrix` as a table: a row for each token of the answer, a column for each token before.

        Raises:
            OutputError: pandas is not installed.
        """
        library = pandas_library()
        keys = [(column.part, column.space, column.index, column.text) for column in self.columns]
        columns = library.MultiIndex.from_tuples(keys, names=["part", "space", "index", "text"])
        rows = library.MultiIndex.from_tuples(enumerate(map(str, self.answer.texts)), names=["index", "text"])
        return library.DataFrame(self.matrix.cpu().numpy(), index=rows, columns=columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file; the suffix says how.

        Args:
            path: ``.html``, a page on which a token of the answer, pointed at, lights up what it rests on;
                ``.png``, the matrix; ``.json``, ``.npz`` and ``.safetensors``, read back by
                :func:`fxplain.load`.

        Raises:
            OutputError: another suffix, no such folder, or the file cannot be written.
        """
        from fxplain.render.answer_page import save

        save(self, path)

    def plot(self) -> Figure:
        """A matplotlib figure of :attr:`matrix`."""
        from fxplain.render.answer_page import matrix_figure

        return matrix_figure(self)

    def _repr_html_(self) -> str:
        from fxplain.render.answer_page import notebook_html

        return notebook_html(self)

    def __repr__(self) -> str:
        lines = [f"Generated {self.text!r} ({len(self)} tokens)"]
        for text, one in zip(self.answer.texts[:8], self, strict=False):
            lines.append(f"  {str(text)!r:>14}  {rests(one)}")
        return "\n".join(lines + (["  ..."] if len(self) > 8 else []))


def rests(explanation: Explanation, count: int = 3) -> str:
    """What one token of an answer rests on most, in words; special tokens, on which decoders park relevance,
    are left out where there are others."""
    strongest = explanation.top(len(explanation.tokens))
    others = [token for token in strongest if not token.special] or strongest
    return ", ".join(f"{token} {token.share:.0%}" for token in others[:count])


def _places(series: Series, grid: tuple[int, ...]) -> list[str]:
    size = int(np.prod(grid)) if len(grid) < 2 else 0
    return [series.words(token, size) for token in range(size)]


def _probability(question: Question) -> float | None:
    parts = question.parts
    return parts[0].question.probability if len(parts) == 1 else question.probability
