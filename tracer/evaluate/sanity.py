"""Two questions that every explanation of *this* model and *this* target must pass.

Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018: a map that stays the same when the weights
are shuffled does not explain them. And one that stays the same for another class does not explain the class.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxplain.evaluate.batches import Explained, on_cpu, samples, take, with_floor
from fxplain.evaluate.estimate import RESAMPLES
from fxplain.evaluate.measures import Measure
from fxplain.evaluate.perturb import METHODS
from fxplain.evaluate.removal import named
from fxplain.evaluate.table import Table
from fxplain.traced import Traced, trace


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of rows, equal values sharing their mean rank: [batch].

    A row that is constant has no ranks to speak of: it counts as unchanged (1) beside another constant one,
    else as unrelated (0).

    Example:
        >>> rank_correlation(torch.tensor([[1.0, 2, 9]]), torch.tensor([[0.3, 0.2, 0.1]])).round(decimals=6)
        tensor([-1.], dtype=torch.float64)
    """
    a, b = (_ranks(values) for values in (one, other))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    lengths = a.norm(dim=1) * b.norm(dim=1)
    constant = (a.norm(dim=1) == 0) & (b.norm(dim=1) == 0)
    return torch.where(lengths > 0, (a * b).sum(1) / lengths.clamp_min(1e-300), constant.double())


def _ranks(values: Tensor) -> Tensor:
    values = values.detach().double()
    above = (values[:, :, None] > values[:, None, :]).double().sum(2)
    equal = (values[:, :, None] == values[:, None, :]).double().sum(2)
    return above + (equal - 1) / 2


def randomisation(
    traced: Traced,
    inputs: Any,
    targets: Any = None,
    methods: Sequence[str] = METHODS,
    *,
    space: str,
    output: str | None = None,
    batch: int = 50,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: bool = True,
) -> Table:
    """Rank correlation between a method's relevance before and after every weight has been shuffled.

    Each tensor of weights keeps its values in another order, so that scales stay. Near 0 is right; near 1 the
    method does not look at what the model has learned. ``random`` does not either, by design.

    Args:
        traced, inputs, methods, output, batch, seed, resamples, progress: see :func:`perturbation`.
        targets: None takes what the trained model says, for both.
        space: the token space whose relevance is compared.
    """
    inputs = named(inputs)
    how: dict[str, Any] = {
        "methods": with_floor(methods),
        "batch": batch,
        "output": output,
        "progress": progress,
    }
    before = _relevance(Explained(traced, inputs, targets=targets, **how), space)
    shuffled = copy.deepcopy(traced.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in shuffled.parameters():
            order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
            weights.copy_(weights.flatten()[order].view_as(weights))
    again = trace(shuffled, take(inputs, slice(0, batch), samples(inputs)))
    after = _relevance(Explained(again, inputs, targets=before.targets, **how), space)
    return _compared("weights shuffled", before, after, seed, resamples)


def class_sensitivity(
    traced: Traced,
    inputs: Any,
    targets: Any,
    others: Any,
    methods: Sequence[str] = METHODS,
    *,
    space: str,
    output: str | None = None,
    batch: int = 50,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: bool = True,
) -> Table:
    """Rank correlation between a method's relevance for one target and for another.

    A method that takes no target has 1.

    Args:
        traced, inputs, methods, output, batch, seed, resamples, progress: see :func:`perturbation`.
        targets, others: two targets for every sample.
        space: the token space whose relevance is compared.
    """
    inputs = named(inputs)
    how: dict[str, Any] = {
        "methods": with_floor(methods),
        "batch": batch,
        "output": output,
        "progress": progress,
    }
    one, two = (
        _relevance(Explained(traced, inputs, targets=each, **how), space) for each in (targets, others)
    )
    return _compared("another target", one, two, seed, resamples)


class _Found:
    """Each method's relevance, and what was explained."""

    def __init__(self, rows: dict[str, Tensor], targets: list[Any], run: Explained) -> None:
        self.rows, self.targets, self.run = rows, targets, run


def _relevance(run: Explained, space: str) -> _Found:
    rows: dict[str, list[Tensor]] = {}
    said: list[Any] = []
    for part in run:
        for name, result in part.results.items():
            rows.setdefault(name, []).append(on_cpu(result.relevance[space]))
        said += list(next(iter(part.results.values())).target)
    whole = {name: torch.cat(parts) for name, parts in rows.items() if name not in run.refused}
    return _Found(whole, said, run)


def _compared(title: str, one: _Found, two: _Found, seed: int, resamples: int) -> Table:
    measure = Measure("rank correlation", higher_is_better=False)
    both = [name for name in one.rows if name in two.rows]
    rows = {name: {measure.name: rank_correlation(one.rows[name], two.rows[name])} for name in both}
    refused = one.run.refused | two.run.refused
    notes = tuple(dict.fromkeys((*one.run.notes, *two.run.notes)))
    return Table(title, (measure,), rows, refused, notes, seed=seed, resamples=resamples)
