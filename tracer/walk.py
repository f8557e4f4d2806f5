"""Relevance as a walk: what part of it came through which attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxplain.attention.labelled import Labelled
from fxplain.attention.records import Attention, Mixing
from fxplain.attribution.passing import passing
from fxplain.attribution.prediction import Prediction, aim, run_graph
from fxplain.attribution.table import Method
from fxplain.capture.guard import forks_told
from fxplain.explanation import check_understood, result_of
from fxplain.result import Result


@dataclass(frozen=True, eq=False)
class Walk:
    """An explanation, and how its relevance came about. Made by :meth:`fxplain.Traced.walk`.

    Example:
        >>> import fxplain, torch
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
        >>> walk = fxplain.trace(model, torch.randn(1, 5, 8)).walk(torch.randn(1, 5, 8), target=(0, 3))
        >>> len(walk.steps), walk.passed[0].shape, walk.shares.shape
        (3, torch.Size([1, 5]), torch.Size([3, 1]))
    """

    result: Result
    steps: tuple[Attention | Mixing, ...]
    """Attentions, and samplings at points, in order of execution."""
    passed: tuple[Tensor, ...]
    """For each of them [batch, token]: how much of a token's relevance comes through it. So much less would
    arrive without it; one path goes through several, so they do not add up to the relevance."""

    @property
    def shares(self) -> Tensor:
        """[step, batch]: what part of all relevance comes through each of them."""
        whole = torch.cat(list(self.result.relevance.values()), -1).sum(-1)
        parts = torch.stack([own.sum(-1) for own in self.passed]) if self.passed else whole.new_zeros(0, 1)
        return torch.where(whole == 0, 0.0, parts / torch.where(whole == 0, 1.0, whole))

    def __repr__(self) -> str:
        shares = self.shares[:, 0].tolist() if self.passed else []
        lines = [f"  {share:6.1%}  {step.module}" for share, step in zip(shares, self.steps, strict=True)]
        return "\n".join([f"Walk of {self.result!r}", *lines])


def predicted(
    labelled: Labelled, bound: Mapping[str, Tensor], target: Any, method: Method, output: str | None
) -> Prediction:
    """One prediction, with gradients where the method takes them, kept for whatever is asked of it."""
    check_understood(labelled)
    with forks_told():
        ran = run_graph(labelled, bound, method.gradients, method.libra, own_scores=callable(target))
        return aim(ran, target, output, retain=True)


def walked(prediction: Prediction, method: Method, verified: float) -> Walk:
    """The explanation of a prediction, and its walk.

    Raises:
        MethodError: the method does not go attention by attention.
    """
    explained = method.explain(prediction)
    result = result_of(prediction, method, explained, verified)
    found = passing(method, prediction, explained.rows)
    classified = prediction.labelled.classified
    steps = {site.index: step for site, step in zip(classified.sites, classified.steps, strict=True)}
    return Walk(result, tuple(steps[site] for site in found), tuple(found.values()))
