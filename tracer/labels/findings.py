"""What one labelling run saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from fxplain.labels.batch_axis import Guess
from fxplain.labels.notebook import Ledger
from fxplain.labels.value import NOTHING, Value


@dataclass(frozen=True)
class Findings:
    """What one labelling run saw."""

    ledger: Ledger
    outputs: tuple[Value, ...]
    values: Mapping[fx.Node, Value | tuple[Value, ...]]
    guess: Guess
    """Where the samples lie."""
    joined: tuple[tuple[int, fx.Node], ...] = ()
    """Axes that were taken for the batch at first, each with the operation that joins places along it."""
    doubted: bool = False
    """Whether the outputs do not tell the samples apart, and another guess of where they lie fits as well."""

    @property
    def batch(self) -> int:
        """How many samples there are."""
        return self.guess.batch

    @property
    def batch_axis(self) -> int | None:
        """The axis that the inputs, or most of them, have their samples on."""
        return self.guess.axis

    @property
    def listed(self) -> Mapping[str, int]:
        """Path of an input -> the sample that it is, where the inputs of a list are a sample each."""
        return self.guess.listed

    def value(self, node: fx.Node) -> Value:
        """What is known of a node; of several results, of the first."""
        return self.parts(node)[0]

    def parts(self, node: fx.Node) -> tuple[Value, ...]:
        """What is known of each result of a node."""
        value = self.values.get(node, NOTHING)
        return value if isinstance(value, tuple) else (value,)
