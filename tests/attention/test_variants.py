"""However an attention is spelled: the same sites, maps and relevance, held against slow references."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from variants import VARIANTS
from variants.base import Variant, tokens

import fxplain


@cache
def built(name: str) -> tuple[Variant, Tensor, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VARIANTS[name].build().eval()
    x = tokens(VARIANTS[name].size)
    return model, x, fxplain.trace(model, x)


@pytest.mark.parametrize("name", VARIANTS)
def test_found(name: str) -> None:
    _, _, traced = built(name)
    assert traced.captured.verified <= VARIANTS[name].tolerance
    assert not [entry for entry in traced.census if entry.role == "unknown"]
    found = [(a.kind, a.queries.size, a.keys.size, a.heads) for a in traced.attentions]
    assert found == list(VARIANTS[name].kinds)
    assert {a.normaliser for a in traced.attentions} == {VARIANTS[name].normaliser}


@pytest.mark.parametrize("name", VARIANTS)
def test_maps(name: str) -> None:
    """The maps of all sites, summed over heads and put where their tokens are, are the dense map."""
    model, x, traced = built(name)
    with torch.no_grad():
        _, wanted, _ = model.dense(x)
    total = torch.zeros(len(x), wanted.shape[-2], wanted.shape[-1], dtype=wanted.dtype)
    for attention, weights in zip(traced.attentions, traced.maps(x), strict=True):
        rows, cols = (torch.tensor(s.tokens) for s in (attention.queries, attention.keys))
        total[:, rows[:, None], cols] += weights.sum(1).to(total.dtype)
    close(total, wanted.sum(1), VARIANTS[name].tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_relevance(name: str) -> None:
    model, x, traced = built(name)
    for target in (0, 2):
        result = traced.explain(x, method="relevancy", target=target)
        close(result.relevance["x"], model.reference(x, target), 3 * VARIANTS[name].tolerance)


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    gap = float((found - wanted).abs().max() / wanted.abs().max())
    assert gap <= tolerance, f"differs by {gap:.2e} of the largest value"
