"""Several answers of a model to one input, explained together: likeliest classes, a detector's objects."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fxplain.display import Display, Look
from fxplain.explainer.explanation import Explanation
from fxplain.explainer.rows import chosen, display_of, stacked
from fxplain.explainer.tokens import TokenRelevance, pandas_library
from fxplain.result import Result

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Ranked(Sequence[Explanation]):
    """The likeliest answers, each explained; those of the first sample first. Made by
    ``explainer(inputs, top=5)``.

    Example:
        >>> import fxplain, torch
        >>> from fxplain.tasks import Task
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> model.fxplain_task = Task("classes", outputs=("output",))
        >>> ranked = fxplain.Explainer(model)(torch.randn(1, 5, 8), top=3)
        >>> len(ranked), len(ranked[0].tokens)
        (3, 5)
    """

    result: Result
    """All numbers; its samples are the answers."""
    display: Display
    """Texts, pictures and names, by token space; by sample of the inputs."""
    samples: tuple[int, ...]
    """Of each answer the sample of the inputs that it is about."""

    @property
    def probabilities(self) -> tuple[float | None, ...]:
        """Of each answer, where it has one."""
        return tuple(question.probability for question in self.result.questions)

    @property
    def questions(self) -> tuple[str, ...]:
        """What was explained of each, in words."""
        return tuple(
            self.display_of(place).question((question,), 0)
            for place, question in enumerate(self.result.questions)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        return (*self.display.notes, *self.result.notes)

    def display_of(self, place: int) -> Display:
        """What is shown beside one answer."""
        return display_of(self.display, self.samples[place])

    def of(self, sample: int) -> Ranked:
        """The answers about one sample of the inputs."""
        rows = [place for place, own in enumerate(self.samples) if own == sample]
        return Ranked(chosen(self.result, rows), display_of(self.display, sample), (0,) * len(rows))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: Any) -> Any:
        """The explanation of one answer, or of several."""
        rows = list(range(len(self)))[place]
        if isinstance(rows, int):
            return Explanation(chosen(self.result, [rows]), self.display_of(rows))
        return Ranked(chosen(self.result, rows), self.display, tuple(self.samples[row] for row in rows))

    def __iter__(self) -> Iterator[Explanation]:
        return (self[place] for place in range(len(self)))

    def top(self, count: int = 10, sample: int = 0) -> tuple[TokenRelevance, ...]:
        """The tokens of one sample that matter most to all its answers together: by the mean of their
        shares."""
        own = self.of(sample)
        if not own:
            return ()
        columns = zip(*(one.tokens for one in own), strict=True)
        means = [
            replace(
                column[0],
                relevance=sum(token.relevance for token in column) / len(column),
                share=sum(token.share for token in column) / len(column),
                aside=all(token.aside for token in column),
            )
            for column in columns
        ]
        order = sorted((token for token in means if not token.aside), key=lambda token: -token.share)
        return tuple(order[:count])

    def facts(self) -> dict[str, Any]:
        """What there is beside the result, as plain values."""
        places = range(len(self))
        names = [self.display_of(i).target_name(self.result.target[i], 0) for i in places]
        return {
            "ranked": {"samples": list(self.samples)},
            "questions": list(self.questions),
            "target_names": names,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures as plain values, as the ``.json`` file holds it."""
        from fxplain.render.save import result_json

        return result_json(self.result, self.display) | self.facts()

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a row for each token of each answer: the answer's place, sample, question and
        probability, then what :meth:`fxplain.Explanation.to_pandas` has.

        Raises:
            OutputError: pandas is not installed.
        """
        library = pandas_library()
        tables = []
        for place, one in enumerate(self):
            table = one.to_pandas().assign(sample=self.samples[place])
            table.insert(0, "answer", place)
            table.insert(1, "question", one.question)
            table.insert(2, "probability", one.probability)
            tables.append(table)
        return library.concat(tables, ignore_index=True)

    def save(self, path: str | os.PathLike[str], look: Look | None = None) -> None:
        """Write it to a file; the suffix says how.

        Args:
            path: ``.html``, a page; ``.png``, the overlays (or coloured tokens) of all answers; ``.json``,
                ``.npz`` and ``.safetensors``, read back by :func:`fxplain.load`.
            look: how relevance is laid over pictures.

        Raises:
            OutputError: another suffix, no such folder, or the file cannot be written.
        """
        from fxplain.render.ranked_page import save

        save(self if look is None else replace(self, display=replace(self.display, look=look)), path)

    def plot(self, look: Look | None = None) -> Figure:
        """A matplotlib figure of all answers."""
        from fxplain.render.ranked_page import ranked_figure

        return ranked_figure(
            self if look is None else replace(self, display=replace(self.display, look=look))
        )

    def _repr_html_(self) -> str:
        from fxplain.render.ranked_page import notebook_html

        return notebook_html(self)

    def __repr__(self) -> str:
        lines = [f"Ranked, {len(self)} answers"]
        for one, sample in zip(self[:10], self.samples, strict=False):
            where = f"sample {sample}: " if max(self.samples) else ""
            rests = ", ".join(f"{token} {token.share:.0%}" for token in one.top(3))
            lines.append(f"  {where}{one.question}: {rests}")
        return "\n".join(lines + (["  ..."] if len(self) > 10 else []))


def unranked(results: Sequence[Result], batch: int) -> tuple[Result, tuple[int, ...]]:
    """Results of which each holds one answer of every sample, as one result with the answers of the first
    sample, then those of the second, ...; and of which sample each is.

    A sample with fewer answers than another has its first one again in the later results.
    """
    whole = stacked(results)
    rows, samples = [], []
    for sample in range(batch):
        for rank, result in enumerate(results):
            if rank and result.target[sample] == results[0].target[sample]:
                continue
            rows.append(rank * batch + sample)
            samples.append(sample)
    return chosen(whole, rows), tuple(samples)
