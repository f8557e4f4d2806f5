"""Rollout and raw attention: the recorded rollout, and loops written from the equations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fxplain.rules import raw_attention, rollout
from fxplain.rules.rows import Reading

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent.parent / "goldens" / "rules.json").read_text())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reading(relevancy: Tensor, q: list[int], k: list[int], weights: Tensor, reached: list[int]) -> Reading:
    excess = (relevancy - torch.eye(len(relevancy), dtype=torch.float64))[None]
    columns = torch.zeros(len(relevancy), dtype=torch.bool)
    columns[reached] = True
    return Reading(weights[None], torch.tensor(q), torch.tensor(k), excess[:, q], excess[:, k], columns)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rollout_meets_the_recorded_result() -> None:
    maps = torch.tensor(GOLDENS["rollout"]["A"], dtype=torch.float64)
    tokens = list(range(maps.shape[-1]))
    relevancy = torch.eye(len(tokens), dtype=torch.float64)
    for map_ in maps:
        relevancy = (
            relevancy + rollout.self_increment(reading(relevancy, tokens, tokens, map_, tokens)).values[0]
        )
    close(relevancy, torch.tensor(GOLDENS["rollout"]["expected_normalised"], dtype=torch.float64))


@pytest.mark.parametrize("normalise", [True, False])
def test_one_factor_of_the_rollout_against_loops(normalise: bool) -> None:
    relevancy, weights = torch.eye(5, dtype=torch.float64) + draw(5, 5), draw(2, 3, seed=1)
    weights[1] = 0  # a fully masked row
    q, k = [0, 3], [0, 1, 3]
    update = rollout.self_increment(reading(relevancy, q, k, weights, [0, 1, 3]), normalise)
    for row, i in enumerate(q):
        factor = [float(i == j) for j in range(5)]
        for column, n in enumerate(k):
            factor[n] += float(weights[row, column])
        total = sum(factor) if normalise else 1.0
        for j in range(5):
            expected = sum(factor[n] / total * float(relevancy[n, j]) for n in range(5))
            assert float(relevancy[i, j] + update.values[0, row, j]) == pytest.approx(expected, rel=1e-12)


def test_eq_12_against_loops() -> None:
    relevancy, weights = torch.eye(5, dtype=torch.float64) + draw(5, 5), draw(2, 3, seed=1)
    q, k = [0, 1], [2, 3, 4]
    update = rollout.cross_increment(reading(relevancy, q, k, weights, [0, 1, 2, 3, 4]))
    assert update.replaced is not None
    assert update.replaced.tolist() == [False, False, True, True, True]
    assert not update.values[..., q].any()
    for row, i in enumerate(q):
        for j in k:
            expected = 0.0
            for a, n in enumerate(q):
                for b, m in enumerate(k):
                    expected += float(relevancy[n, i] * weights[a, b] * relevancy[m, j])
            assert float(update.values[0, row, j]) == pytest.approx(expected, rel=1e-12)


def test_raw_attention_places_the_map_in_its_rows() -> None:
    relevancy, weights = torch.eye(4, dtype=torch.float64), draw(2, 3)
    update = raw_attention.place(reading(relevancy, [0, 2], [0, 1, 2], weights, [0, 1, 2]))
    rows = update.values[0] + relevancy[[0, 2]]
    close(rows[:, [0, 1, 2]], weights)
    assert not rows[:, 3].any()
    assert update.replaced is not None
    assert update.replaced.tolist() == [True, True, True, False]


def test_raw_cross_attention_leaves_the_queries_their_own_entry() -> None:
    update = raw_attention.place(reading(torch.eye(3, dtype=torch.float64), [0], [1, 2], draw(1, 2), [1, 2]))
    assert update.values[0, 0, 0] == 0


def test_head_mean_counts_a_masked_row_as_nothing() -> None:
    maps = torch.tensor([[[float("nan"), float("nan")], [0.5, 0.5]]], dtype=torch.float16)
    found = raw_attention.head_mean(maps, dim=0)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.tensor([[0.0, 0.0], [0.5, 0.5]]))
