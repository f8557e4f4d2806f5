"""Gradients of scores to where inputs enter the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxplain.attention.labelled import Labelled
from fxplain.run.entries import Entries, Entry, gradients_at
from fxplain.run.replay import execute
from fxplain.run.target import Resolved, default_output, resolve

LEAST = 1e-5
"""The smallest gradient that counts, beside the largest to what the same input is made of."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """One run with gradients of the summed scores to all entries."""

    resolved: Resolved
    entries: tuple[Entry, ...]
    gradients: tuple[Tensor, ...]

    def at(self, source: str) -> list[int]:
        """The entries of an input itself, or of what is made of its ids."""
        return [place for place, entry in enumerate(self.entries) if source in entry.sources]

    def moving(self, place: int) -> Tensor:
        """Which elements of an entry move the score: [*shape]."""
        entry = self.entries[place]
        kin = self.at(next(iter(entry.sources))) if entry.sources else [place]
        sizes = (float(self.gradients[other].abs().max()) for other in kin if self.gradients[other].numel())
        largest = max(sizes, default=0.0)
        return entry.of_own(self.gradients[place].abs()) > LEAST * largest

    def weight(self, place: int) -> Tensor:
        """Gradient times input: [*shape]."""
        entry = self.entries[place]
        values = (self.gradients[place] * entry.tensor.detach()).abs().nan_to_num(0, 0, 0).double()
        return entry.of_own(values)


def slopes_of(
    labelled: Labelled,
    bound: Mapping[str, Tensor],
    entries: Entries,
    asked: tuple[Any, str | None],
    held: frozenset[fx.Node],
) -> Slopes:
    """Run the graph, and differentiate the scores.

    Args:
        labelled, bound: the graph with its labels, and a tensor for each placeholder.
        entries: where inputs enter.
        asked: the target, and the name of the output or None, as for :meth:`fxplain.Traced.explain`.
        held: tensors through which no gradient passes.
    """
    captured, findings = labelled.captured, labelled.findings

    def change(node: fx.Node, value: Any) -> Any:
        return entries.change(node, _detached(value) if node in held else value)

    with torch.enable_grad():
        outputs = execute(captured, bound, change)
        steps = frozenset(site.index for site in labelled.classified.sites)
        wanted = asked[1] or default_output(captured.outputs, outputs, findings.outputs, steps)
        resolved = resolve(outputs, findings.outputs, captured, asked[0], wanted, findings.batch)
        found = tuple(entries.found)
        if not resolved.scores.requires_grad:  # all ways to it are held
            return Slopes(resolved, found, tuple(torch.zeros_like(entry.tensor) for entry in found))
        return Slopes(resolved, found, tuple(gradients_at(resolved.scores.sum(), found)))


def _detached(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_detached(part) for part in value)
    return value.detach() if isinstance(value, Tensor) else value
