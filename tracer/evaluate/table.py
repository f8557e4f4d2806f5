"""A table of scores: one row per method, each cell with its interval, and all samples behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxplain.errors import OutputError, UnknownNameError
from fxplain.evaluate.estimate import RESAMPLES, Estimate, drawn
from fxplain.evaluate.measures import Curves, Measure


@dataclass(frozen=True, eq=False)
class Table:
    """Scores of several methods on the same samples."""

    title: str
    measures: tuple[Measure, ...]
    rows: Mapping[str, Mapping[str, Tensor]]
    """Method -> measure -> one row per sample, in the order of the samples."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Method -> why it has no row."""
    notes: tuple[str, ...] = ()
    curves: Curves | None = None
    seed: int = 0
    resamples: int = RESAMPLES

    given: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Method -> measure -> its value, then those on draws of the samples: of scores that are no statistic of
    rows (COCO's), in place of rows."""
    units: Tensor | None = None
    """[samples]: the number of the unit that each sample is of, where several are of one (questions about one
    picture): whole units are drawn again for intervals."""

    @cached_property
    def cells(self) -> dict[str, dict[str, Estimate]]:
        """Method -> measure -> value and interval."""
        return {
            method: {m.name: Estimate.of(self.draws(method, m.name)) for m in self.measures}
            for method in self.rows
        }

    def draws(self, method: str, measure: str) -> Tensor:
        """The value, then those on draws of the samples, alike for all methods: [1 + resamples].

        Raises:
            UnknownNameError: no such measure or method.
        """
        if measure in self.given.get(method, {}):
            return self.given[method][measure]
        statistic = next((m.statistic for m in self.measures if m.name == measure), None)
        if statistic is None or measure not in self.rows.get(method, {}):
            raise UnknownNameError(f"the table has no {measure!r} of {method!r}")
        rows, draws = self.rows[method][measure], {"seed": self.seed, "resamples": self.resamples}
        return drawn(rows, statistic, units=self.units, **draws)

    @property
    def samples(self) -> int:
        """How many samples were scored."""
        return max((len(r) for rows in self.rows.values() for r in rows.values()), default=0)

    @property
    def independent(self) -> int:
        """How many units the samples are of."""
        return self.samples if self.units is None else len(torch.unique(self.units))

    def difference(self, measure: str, one: str, other: str) -> Estimate:
        """How much higher one method's score is than another's, on the same draws of samples.

        Both methods saw the same samples, so their difference is surer than either score.

        Raises:
            UnknownNameError: no such measure or method.
        """
        return Estimate.of(self.draws(one, measure) - self.draws(other, measure))

    def text(self) -> str:
        """The table as text, best first by the first measure."""
        head = ["method", *(f"{m.name} {'↑' if m.higher_is_better else '↓'}" for m in self.measures)]
        body = [[method, *(str(self.cells[method][m.name]) for m in self.measures)] for method in self.order]
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in (head, *body)
        ]
        lines = [f"{self.title} ({self.samples} samples, 95 % intervals)", *lines]
        lines += [f"refused: {name}: {why}" for name, why in self.refused.items()]
        return "\n".join((*lines, *(f"note: {note}" for note in self.notes)))

    def markdown(self, published: Mapping[str, Mapping[str, str]] | None = None) -> str:
        """The table as Markdown.

        Args:
            published: measure -> method -> what a paper found elsewhere, in a column beside.
        """
        shown = published or {}
        head = ["method"]
        for m in self.measures:
            head.append(f"{m.name} {'↑' if m.higher_is_better else '↓'}")
            head += ["published"] if m.name in shown else []
        lines = [" | ".join(head), " | ".join(["---"] * len(head))]
        for method in self.order:
            row = [f"`{method}`"]
            for m in self.measures:
                row.append(str(self.cells[method][m.name]))
                row += [shown[m.name].get(method, "")] if m.name in shown else []
            lines.append(" | ".join(row))
        return "\n".join(f"| {line} |" for line in lines)

    @property
    def order(self) -> Sequence[str]:
        """Methods, best first by the first measure."""
        lead = self.measures[0]
        sign = -1.0 if lead.higher_is_better else 1.0
        return sorted(self.rows, key=lambda method: sign * self.cells[method][lead.name].value)

    def to_json(self) -> dict[str, Any]:
        """All numbers, for a file."""
        cells = {
            method: {name: [c.value, c.low, c.high] for name, c in row.items()}
            for method, row in self.cells.items()
        }
        return {
            "title": self.title,
            "samples": self.samples,
            "units": self.independent,
            "measures": {m.name: "higher" if m.higher_is_better else "lower" for m in self.measures},
            "scores": {method: cells[method] for method in self.order},
            "refused": dict(self.refused),
            "notes": list(self.notes),
            **({"curves": self._curves(self.curves)} if self.curves is not None else {}),
        }

    def _curves(self, curves: Curves) -> dict[str, Any]:
        sides = {"positive": curves.positive, "negative": curves.negative}
        means = {
            side: {method: rows.double().mean(0).tolist() for method, rows in values.items()}
            for side, values in sides.items()
        }
        return {"what": curves.what, "removed": list(curves.steps), **means}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``.json`` (numbers), ``.md`` (the table) or ``.png`` (the curves, else the scores).

        Raises:
            OutputError: another suffix, no such folder, or the file cannot be written.
        """
        from fxplain.files import write_whole

        path = Path(path)
        if path.suffix == ".json":
            write_whole(path, json.dumps(self.to_json(), indent=1) + "\n")
        elif path.suffix == ".md":
            write_whole(path, self.markdown() + "\n")
        elif path.suffix == ".png":
            from fxplain.evaluate.plot import picture

            write_whole(path, picture(self))
        else:
            raise OutputError(
                f"a table cannot be saved as {path.name!r}", expected=".json, .md or .png", found=path.suffix
            )
