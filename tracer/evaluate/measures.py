"""What a table has for columns: measures, and the curves that some of them are areas under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fxplain.evaluate.estimate import Statistic, first


@dataclass(frozen=True)
class Measure:
    """One column: what is made of the samples' mean row, and which end is good."""

    name: str
    higher_is_better: bool = True
    statistic: Statistic = first


@dataclass(frozen=True, eq=False)
class Curves:
    """The two curves of each method: accuracy (or score) over the part that was removed."""

    steps: tuple[float, ...]
    positive: Mapping[str, Tensor]
    """Method -> [samples, steps], the most relevant removed first."""
    negative: Mapping[str, Tensor]
    what: str = "accuracy"
