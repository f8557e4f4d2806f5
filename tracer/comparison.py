"""Several methods on one prediction, side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxplain.errors import FxplainError, MethodError
from fxplain.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fxplain.display import Display


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Mapping[str, Result]):
    """Method -> its result, for one prediction and one set of attentions. Made by :func:`fxplain.compare`."""

    results: Mapping[str, Result]
    refused: Mapping[str, FxplainError]
    """Method -> why it has no result: it is not defined for this model, or cannot be computed here."""

    @classmethod
    def of(cls, answers: Mapping[str, Result | FxplainError]) -> Comparison:
        """From each method's result or refusal.

        Raises:
            FxplainError: no method has a result; the first one's refusal.
        """
        refused = {
            name: answer.with_traceback(None)  # which would keep every value of the run
            for name, answer in answers.items()
            if isinstance(answer, FxplainError)
        }
        results = {name: answer for name, answer in answers.items() if not isinstance(answer, FxplainError)}
        if not results:
            raise next(
                iter(refused.values()), MethodError("no method to compare", expected="at least one name")
            )
        return cls(results, refused)

    @property
    def notes(self) -> tuple[str, ...]:
        """What all results note, as it is, and what only some of them do after the names of those methods."""
        by_note: dict[str, list[str]] = {}
        for name, result in self.results.items():
            for note in result.notes:
                by_note.setdefault(note, []).append(name)
        every = len(self.results)
        return tuple(note if len(by) == every else f"{', '.join(by)}: {note}" for note, by in by_note.items())

    def __getitem__(self, name: str) -> Result:
        if name in self.refused:
            raise self.refused[name]
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def save(self, path: str | os.PathLike[str], display: Display | None = None) -> None:
        """Write all methods side by side, whole or not at all; the suffix says how.

        Args:
            path: ``.html`` a page to read, ``.png`` a picture, ``.json`` or ``.npz`` the numbers.
            display: images, token texts and names of targets to show; without it tokens are numbered.

        Raises:
            OutputError: another suffix, no such folder, or the file cannot be written.
        """
        from fxplain.render.side_by_side import save

        save(self, path, display)

    def plot(self, display: Display | None = None) -> Figure:
        """A matplotlib figure of all methods side by side.

        Args:
            display: as for :meth:`save`.
        """
        from fxplain.display import Display
        from fxplain.render.side_by_side import comparison_figure

        return comparison_figure(self, display or Display())

    def _repr_html_(self) -> str:
        from fxplain.display import Display
        from fxplain.render.notebook import comparison_html

        return comparison_html(self, Display())

    def __repr__(self) -> str:
        refused = f", refused: {', '.join(self.refused)}" if self.refused else ""
        return f"Comparison({', '.join(self.results)}{refused})"
