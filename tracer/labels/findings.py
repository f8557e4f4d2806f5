"""What one labelling run saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from fxplain.labels.batch_axis import Guess
from fxplain.labels.labels import NOTHING, Value
from fxplain.labels.notebook import Ledger


@dataclass(frozen=True)
class Findings:
    """What one labelling run saw."""

    ledger: Ledger
    outputs: tuple[Value, ...]
    values: Mapping[fx.Node, Value | tuple[Value, ...]]
    batch: int
    batch_axis: int | None
    joined: tuple[tuple[int, fx.Node], ...] = ()
    """Axes that were taken for the batch at first, each with the operation that joins places along it."""
    listed: Mapping[str, int] = field(default_factory=dict)
    """Path of an input -> the sample that it is, where the inputs of a list are a sample each."""

    @property
    def guess(self) -> Guess:
        """Where the samples lie."""
        return Guess(self.batch_axis, self.batch, self.listed)

    def value(self, node: fx.Node) -> Value:
        """What is known of a node; of several results, of the first."""
        return self.parts(node)[0]

    def parts(self, node: fx.Node) -> tuple[Value, ...]:
        """What is known of each result of a node."""
        value = self.values.get(node, NOTHING)
        return value if isinstance(value, tuple) else (value,)
