"""A number measured on samples, and how far another draw of samples might have moved it.

Efron, *Bootstrap Methods: Another Look at the Jackknife*, Annals of Statistics 1979: the samples are drawn
again with replacement, and the middle part of the values so had is the interval (the percentile method).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxplain.errors import InputError

RESAMPLES = 1000
LEVEL = 0.95

Statistic = Callable[[Tensor], Tensor]
"""From mean rows [resamples, columns] to one value each: [resamples]."""


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its confidence interval.

    Example:
        >>> print(Estimate(0.5, 0.25, 0.75))
        0.500 [0.250, 0.750]
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor, level: float = LEVEL) -> Estimate:
        """From [1 + resamples]: the value, then those of the draws."""
        tail = (1.0 - level) / 2.0
        ends = torch.tensor([tail, 1.0 - tail], dtype=torch.float64)
        low, high = torch.quantile(values[1:].double(), ends).tolist()
        return cls(float(values[0]), low, high)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def first(means: Tensor) -> Tensor:
    """The mean of the first column: the statistic of rows that hold one number."""
    return means[:, 0]


def estimate(
    rows: Tensor,
    statistic: Statistic = first,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """A statistic of the samples' mean row, with its bootstrap confidence interval.

    See :func:`drawn`, which has the values behind the interval.

    Args:
        rows, statistic, seed, resamples: see :func:`drawn`.
        level: the part of the drawn values that lies within the interval.

    Example:
        >>> found = estimate(torch.tensor([0.0, 0.0, 1.0, 1.0]))
        >>> found.value, found.low, found.high
        (0.5, 0.0, 1.0)
    """
    return Estimate.of(drawn(rows, statistic, seed=seed, resamples=resamples), level)


def drawn(
    rows: Tensor,
    statistic: Statistic = first,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    units: Tensor | None = None,
) -> Tensor:
    """A statistic of the samples' mean row, and of as many draws of the samples: [1 + resamples].

    What is pooled over samples (intersection over union) is a statistic of the means of what is pooled. The
    same seed draws the same samples, so rows of two methods on the same samples are resampled alike.

    Args:
        rows: [samples] or [samples, columns], one row per sample, all finite.
        statistic: from mean rows [resamples, columns] to values [resamples]; the mean itself by default.
        seed: of the draws.
        resamples: how often the samples are drawn again.
        units: [samples], the number of the unit that a sample is of (a picture that several questions are
            asked about): whole units are drawn again, each with all its samples. None: each is one.

    Raises:
        InputError: no samples, or a row that is not finite.
    """
    rows = rows.detach().cpu().double()
    rows = rows[:, None] if rows.ndim == 1 else rows
    if not rows.numel() or not bool(rows.isfinite().all()):
        found = f"shape {list(rows.shape)}" if not rows.numel() else "NaN or infinity"
        raise InputError("there is nothing to estimate", expected="finite rows, one or more", found=found)
    again = statistic(means_of_draws(rows, seed, resamples, units))
    return torch.cat([statistic(rows.mean(0, keepdim=True)), again])


def means_of_draws(rows: Tensor, seed: int, resamples: int, units: Tensor | None = None) -> Tensor:
    """[resamples, columns]: mean rows of as many units as there are, drawn with replacement."""
    each = torch.arange(len(rows)) if units is None else torch.unique(units.cpu(), return_inverse=True)[1]
    count = int(each.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(count, (resamples, count), generator=generator)
    times = torch.zeros(resamples, count, dtype=rows.dtype)
    times.scatter_add_(1, chosen, torch.ones(1, 1, dtype=rows.dtype).expand_as(times))
    of_samples = times[:, each]
    return of_samples @ rows / of_samples.sum(1, keepdim=True)
