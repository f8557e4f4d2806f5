"""Eqs. 5 to 11 against a second, slow implementation: loops over numbers, written from the formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxplain.rules.relevancy import (
    Flags,
    cross_block,
    cross_increment,
    head_mean_relevance,
    normalised_excess,
    self_increment,
)
from fxplain.rules.rows import Reading

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent.parent / "goldens" / "rules.json").read_text())
FLAGS = [Flags(n, s) for n in (True, False) for s in (True, False)]


def tensor(numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def close(found: Tensor, expected: Any) -> None:
    expected = expected if isinstance(expected, Tensor) else tensor(expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------ the slow second implementation


def slow_product(a: Tensor, b: Tensor) -> Tensor:
    out = torch.zeros(a.shape[0], b.shape[1], dtype=torch.float64)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for n in range(a.shape[1]):
                out[i, j] += a[i, n] * b[n, j]
    return out


def slow_eq_5(maps: Tensor, gradients: Tensor) -> Tensor:
    heads, rows, columns = maps.shape
    out = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            for h in range(heads):
                out[i, j] += max(float(gradients[h, i, j] * maps[h, i, j]), 0.0) / heads
    return out


def slow_eq_8_and_9(relevancy: Tensor) -> Tensor:
    """R̄ of one stream's R, rows without relevance left as identity rows."""
    n = len(relevancy)
    out = torch.eye(n, dtype=torch.float64)
    for i in range(n):
        hat = [float(relevancy[i, j]) - (i == j) for j in range(n)]
        for j in range(n):
            out[i, j] += hat[j] / sum(hat) if sum(hat) != 0 else 0.0
    return out


def slow_cross(relevancy: Tensor, q: list[int], k: list[int], weights: Tensor, flags: Flags) -> Tensor:
    """ΔR, dense, of a cross attention on R of all tokens: eqs. 10 and 11 and third streams."""
    out = torch.zeros_like(relevancy)
    among_q, among_k = relevancy[q][:, q], relevancy[k][:, k]
    if flags.normalize_self_attention:
        among_q, among_k = slow_eq_8_and_9(among_q), slow_eq_8_and_9(among_k)
    block = slow_product(slow_product(among_q.T, weights), among_k) if flags.self_in_rule_10 else weights
    for row, i in enumerate(q):
        for j in range(len(relevancy)):
            for column, n in enumerate(k):
                if j == n:
                    out[i, j] += block[row, column]
                elif j not in k:
                    out[i, j] += weights[row, column] * relevancy[n, j]
    return out


def reading(relevancy: Tensor, q: list[int], k: list[int], weights: Tensor) -> Reading:
    excess = (relevancy - torch.eye(len(relevancy), dtype=torch.float64))[None]
    everywhere = torch.ones(len(relevancy), dtype=torch.bool)
    return Reading(weights[None], torch.tensor(q), torch.tensor(k), excess[:, q], excess[:, k], everywhere)


# ------------------------------------------------ eq. 5


def test_eq_5_meets_the_recorded_result() -> None:
    case = GOLDENS["eq5"]
    close(head_mean_relevance(tensor(case["A"]), tensor(case["grad"]), dim=1)[0], case["expected"])


def test_eq_5_against_loops() -> None:
    maps, gradients = draw(3, 4, 5), draw(3, 4, 5, seed=1) - 0.5
    close(head_mean_relevance(maps, gradients, dim=0), slow_eq_5(maps, gradients))


def test_eq_5_clamps_before_the_mean() -> None:
    maps, gradients = torch.ones(2, 1, 1), torch.tensor([[[1.0]], [[-1.0]]])
    assert head_mean_relevance(maps, gradients, dim=0).item() == 0.5


def test_eq_5_takes_any_leading_axes_and_several_head_axes() -> None:
    maps, gradients = draw(2, 3, 2, 4, 5), draw(2, 3, 2, 4, 5, seed=1) - 0.5
    found = head_mean_relevance(maps, gradients, dim=(1, 2))
    assert found.shape == (2, 4, 5)
    close(found[1], slow_eq_5(maps[1].flatten(0, 1), gradients[1].flatten(0, 1)))


@pytest.mark.parametrize("nothing", [None, "zeros"])
def test_eq_5_never_multiplies_nan_by_a_missing_gradient(nothing: str | None) -> None:
    maps = torch.tensor([[[float("nan"), 0.5], [float("inf"), 0.5]]])
    gradients = None if nothing is None else torch.zeros_like(maps)
    assert torch.equal(head_mean_relevance(maps, gradients, dim=0), torch.zeros(2, 2))


def test_eq_5_keeps_a_nan_that_counts() -> None:
    maps, gradients = torch.tensor([[[float("nan")]]]), torch.ones(1, 1, 1)
    assert head_mean_relevance(maps, gradients, dim=0).isnan().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_eq_5_does_not_underflow_in_half_precision(half: torch.dtype) -> None:
    maps = torch.full((1, 1, 1), 1e-4, dtype=half)
    found = head_mean_relevance(maps, maps, dim=0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1e-8, rel=1e-2)


def test_eq_5_leaves_its_arguments_as_they_were() -> None:
    maps, gradients = draw(2, 2, 2), draw(2, 2, 2, seed=1) - 0.5
    before = maps.clone(), gradients.clone()
    head_mean_relevance(maps, gradients, dim=0)
    assert torch.equal(maps, before[0])
    assert torch.equal(gradients, before[1])


# ------------------------------------------------ eqs. 6 to 11


def test_eqs_8_and_9_against_loops() -> None:
    excess = draw(4, 4)
    excess[2] = 0
    identity = torch.eye(4, dtype=torch.float64)
    close(normalised_excess(excess) + identity, slow_eq_8_and_9(excess + identity))


def test_a_row_without_relevance_stays_an_identity_row() -> None:
    excess = torch.tensor([[0.0, 0.0], [1e-9, 0.0]])
    assert torch.equal(normalised_excess(excess), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))


def test_increments_under_the_resolution_of_one_survive() -> None:
    """1 + 1e-9 is 1 in float32, so eqs. 8 and 9 on R itself would find an empty row."""
    weights, tiny = torch.tensor([[[0.5]]]), torch.full((1, 1, 1), 1e-9)
    assert cross_block(weights, tiny, torch.zeros(1, 1, 1)).item() == 1.0


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_eq_10_against_loops(flags: Flags) -> None:
    relevancy, weights = torch.eye(7, dtype=torch.float64) + draw(7, 7), draw(3, 2, seed=1)
    q, k = [0, 2, 3], [4, 6]
    dense = slow_cross(relevancy, q, k, weights, flags)
    update = cross_increment(reading(relevancy, q, k, weights), flags)
    assert update.replaced is None
    close(update.values[0], dense[q])


def test_eqs_6_and_7_against_loops() -> None:
    relevancy, weights = torch.eye(6, dtype=torch.float64) + draw(6, 6), draw(2, 3, seed=1)
    q, k = [1, 4], [1, 3, 4]
    close(self_increment(reading(relevancy, q, k, weights)).values[0], slow_product(weights, relevancy[k]))


def test_without_aggregation_the_increment_takes_the_rows_place() -> None:
    relevancy, weights = torch.eye(6, dtype=torch.float64) + draw(6, 6), draw(2, 3, seed=1)
    q, k, flags = [1, 4], [0, 2, 3], Flags(aggregate=False)
    identity = torch.eye(6, dtype=torch.float64)
    update = self_increment(reading(relevancy, q, k, weights), flags)
    assert update.replaced is not None
    assert update.replaced.all()
    close(update.values[0] + identity[q], slow_product(weights, relevancy[k]))
    update = cross_increment(reading(relevancy, q, k, weights), flags)
    close(update.values[0] + identity[q], slow_cross(relevancy, q, k, weights, Flags())[q])


def test_rules_leave_what_they_read_as_it_was() -> None:
    relevancy = torch.eye(5, dtype=torch.float64) + draw(5, 5)
    for rule in (self_increment, cross_increment):
        for flags in (*FLAGS, Flags(aggregate=False)):
            given_ = reading(relevancy, [0, 1], [2, 3, 4], draw(2, 3, seed=1))
            before = [t.clone() for t in vars(given_).values()]
            rule(given_, flags)
            assert all(torch.equal(a, b) for a, b in zip(before, vars(given_).values(), strict=True))


# ------------------------------------------------ the recorded models, through the rules alone


@pytest.mark.parametrize("name", ["self_only", "detr", "lxmert"])
def test_recorded_models_through_the_rules_alone(name: str) -> None:
    case = GOLDENS[name]
    for setting, expected in case["expected"].items() if name == "detr" else [("", case["expected"])]:
        flags = Flags("normalize=False" not in setting, "rule_10=False" not in setting)
        found = by_hand(case, flags)
        for pair, numbers in expected.items():
            close(found[pair], numbers)


def by_hand(case: dict[str, Any], flags: Flags) -> dict[str, Tensor]:
    """R over all tokens, updated in place site by site; two cross attentions in a row are one layer's."""
    spans, total = {}, 0
    for stream, size in case["tokens"].items():
        spans[stream], total = list(range(total, total + size)), total + size
    relevancy = torch.eye(total, dtype=torch.float64)
    old, was_cross = relevancy, False
    for site in case["sites"]:
        q, k = spans[site["query"]], spans[site["key"]]
        weights = head_mean_relevance(tensor(site["A"]), tensor(site["grad"]), dim=1)[0]
        cross = q != k
        old = old if cross and was_cross else relevancy.clone()
        rule = cross_increment if cross else self_increment
        relevancy[q] += rule(reading(old, q, k, weights), flags).values[0]
        was_cross = cross
    return {f"{a},{b}": relevancy[spans[a]][:, spans[b]] for a in spans for b in spans}


# ------------------------------------------------ properties


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(2, 7),
    flags=st.sampled_from(FLAGS),
    split=st.integers(1, 6),
)
def test_increments_are_never_negative_and_cross_meets_loops(
    seed: int, tokens: int, flags: Flags, split: int
) -> None:
    split = min(split, tokens - 1)
    q, k = list(range(split)), list(range(split, tokens))
    relevancy = torch.eye(tokens, dtype=torch.float64) + draw(tokens, tokens, seed=seed).round(decimals=1)
    weights = (draw(len(q), len(k), seed=seed + 1) - 0.5).clamp(min=0)
    values = cross_increment(reading(relevancy, q, k, weights), flags).values[0]
    assert (values >= 0).all()
    close(values, slow_cross(relevancy, q, k, weights, flags)[q])
