"""Scores of explanations, each against a slow one written from its formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fxplain
from fxplain import evaluate
from fxplain.errors import InputError
from fxplain.evaluate.estimate import means_of_draws


@pytest.fixture
def chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_package_is_had_from_fxplain() -> None:
    assert fxplain.evaluate is evaluate


# estimates


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    held = 0
    for seed in range(200):
        found = evaluate.estimate(torch.rand(60, generator=generator), seed=seed, resamples=300)
        held += found.low <= 0.5 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_draws_are_means_of_rows_drawn_with_replacement(chance: Any) -> None:
    rows = torch.rand(7, 2, generator=chance, dtype=torch.float64)
    chosen = torch.randint(7, (5, 7), generator=torch.Generator().manual_seed(3))
    slow = torch.stack([rows[draw].mean(0) for draw in chosen])
    torch.testing.assert_close(means_of_draws(rows, 3, 5), slow)


def test_a_ratio_is_estimated_as_a_whole() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = evaluate.estimate(rows, lambda means: means[:, 0] / means[:, 1])
    assert found.value == pytest.approx(4 / 6)  # not the mean of 1/2 and 3/4
    assert (found.low, found.high) == (0.5, 0.75)


@pytest.mark.parametrize("rows", [torch.zeros(0), torch.tensor([1.0, math.nan])])
def test_what_cannot_be_estimated_is_refused(rows: Any) -> None:
    with pytest.raises(InputError, match="nothing to estimate"):
        evaluate.estimate(rows)


# perturbation


@pytest.mark.parametrize("most_first", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.29, 0.5, 1.0])
def test_tokens_go_in_the_order_of_their_relevance(chance: Any, fraction: Any, most_first: Any) -> None:
    relevance = torch.rand(3, 100, generator=chance).round(decimals=2)  # with some that are equal
    removable = torch.rand(3, 100, generator=chance) > 0.3
    found = evaluate.kept(relevance, fraction, most_first=most_first, removable=removable)
    for row, may, left in zip(relevance.tolist(), removable.tolist(), found.tolist(), strict=True):
        places = [i for i in range(100) if may[i]]
        places.sort(key=lambda i: -row[i] if most_first else row[i])  # stable
        gone = set(places[: int(round(len(places) * fraction, 6))])
        assert left == [i not in gone for i in range(100)]


def test_tokens_without_a_number_are_the_least_relevant() -> None:
    relevance = torch.tensor([[math.nan, 0.0, -1.0, math.inf]])
    assert evaluate.kept(relevance, 0.75, most_first=True).tolist() == [[True, False, False, False]]
    assert evaluate.kept(relevance, 0.25, most_first=False).tolist() == [[False, True, True, True]]


def test_the_area_is_the_integral_over_its_width() -> None:
    steps = torch.tensor(evaluate.PROTOCOLS["tokens"].steps)
    slow = sum(
        (b - a) * (a**2 + b**2) / 2 for a, b in zip(steps.tolist()[:-1], steps.tolist()[1:], strict=True)
    )
    assert float(evaluate.auc(steps, steps**2)) == pytest.approx(slow)
    nine = torch.tensor(evaluate.PROTOCOLS["pixels"].steps)
    assert float(evaluate.auc(nine, torch.full((9,), 0.7))) == pytest.approx(0.7)


# maps


def slow_iou(found: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """As the authors count: both classes, intersections and unions summed over all pictures."""
    inter, union, right, total = np.zeros(2), np.zeros(2), 0, 0
    for one, two in zip(found, masks, strict=True):
        for k in (0, 1):
            inter[k] += ((one == k) & (two == k)).sum()
            union[k] += ((one == k) | (two == k)).sum()
        right += (one == two).sum()
        total += one.size
    return right / total, float((inter / union).mean())


def test_pixel_accuracy_and_mean_iou(chance: Any) -> None:
    maps, masks = torch.rand(5, 6, 7, generator=chance), torch.rand(5, 6, 7, generator=chance) > 0.7
    found = maps > maps.mean((1, 2), keepdim=True)
    assert torch.equal(evaluate.above_mean(maps), found)
    assert torch.equal(evaluate.above_mean(evaluate.scaled(maps)), found)
    rows = evaluate.overlaps(found, masks)
    means = rows.mean(0, keepdim=True)
    accuracy, iou = slow_iou(found.numpy().astype(int), masks.numpy().astype(int))
    assert float(evaluate.pixel_accuracy(means)) == pytest.approx(accuracy)
    assert float(evaluate.mean_iou(means)) == pytest.approx(iou)


def slow_average_precision(scores: list[float], wanted: list[bool]) -> float:
    """The sum over thresholds of precision times what recall gains."""
    value, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [want for score, want in zip(scores, wanted, strict=True) if score >= threshold]
        recall = sum(taken) / sum(wanted)
        value += (recall - before) * sum(taken) / len(taken)
        before = recall
    return value


def test_average_precision(chance: Any) -> None:
    scores = torch.rand(4, 30, generator=chance).round(decimals=1)
    wanted = torch.rand(4, 30, generator=chance) > 0.6
    wanted[3] = False
    found = evaluate.average_precision(scores, wanted)
    for i in range(3):
        slow = slow_average_precision(scores[i].tolist(), wanted[i].tolist())
        assert float(found[i]) == pytest.approx(slow)
    assert math.isnan(found[3])


def test_the_share_inside_is_of_positive_relevance() -> None:
    relevance = torch.tensor([[1.0, 3.0, -5.0], [0.0, -1.0, 0.0]])
    inside = torch.tensor([[True, False, True], [True, True, True]])
    assert evaluate.share_inside(relevance, inside).tolist() == [0.25, 0.0]


def test_a_map_points_at_its_largest_value() -> None:
    relevance = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0], [math.nan, 2.0, 1.0]])
    inside = torch.tensor([[False, True, False]]).expand(3, 3)
    assert evaluate.points_inside(relevance, inside).tolist() == [True, False, False]


def test_maps_are_made_as_large_as_the_picture() -> None:
    maps = evaluate.to_pixels(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    assert maps.tolist() == [[[0.0, 0.25, 0.75, 1.0]]]  # half-pixel centres, edges repeated


# rationales and alignments


def slow_f1(row: list[float], marked: list[bool], counted: list[bool], k: int) -> float:
    places = sorted((i for i in range(len(row)) if counted[i]), key=lambda i: -row[i])[:k]
    true = {i for i in range(len(row)) if marked[i] and counted[i]}
    hits = len(true & set(places))
    if not hits:
        return 0.0
    precision, recall = hits / len(places), hits / len(true)
    return 2 * precision * recall / (precision + recall)


def test_token_f1(chance: Any) -> None:
    relevance = torch.rand(6, 20, generator=chance)
    marked, counted = (torch.rand(6, 20, generator=chance) > p for p in (0.7, 0.2))
    marked[5] = False
    ks = (1, 5, 10, 40)
    found = evaluate.token_f1(relevance, marked, ks, counted)
    for i in range(6):
        for j, k in enumerate(ks):
            row = slow_f1(relevance[i].tolist(), marked[i].tolist(), counted[i].tolist(), k)
            assert float(found[i, j]) == pytest.approx(row)


def test_alignment_counts_targets_with_a_source() -> None:
    relevance = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [9.0, 0.0]])
    assert evaluate.alignment_share(relevance, torch.tensor([1, 1, 0, -1])).tolist() == [True, False, False]


# detection


def slow_otsu(values: np.ndarray) -> float:
    """The threshold, among the middles of 256 bins, with the largest variance between both sides."""
    counts, edges = np.histogram(values, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    best, chosen = -1.0, 0.0
    for k in range(1, 256):
        left, right = counts[:k].sum(), counts[k:].sum()
        if not (left and right):
            continue
        low, high = (counts[:k] * middles[:k]).sum() / left, (counts[k:] * middles[k:]).sum() / right
        if left * right * (low - high) ** 2 > best * (1 + 1e-12):
            best, chosen = left * right * (low - high) ** 2, middles[k - 1]
    return chosen


def test_otsu_masks(chance: Any) -> None:
    maps = torch.rand(3, 4, 4, generator=chance) ** 3
    maps[2] = 1.0
    found = evaluate.otsu_masks(maps, (16, 12))
    large = evaluate.to_pixels(maps, (16, 12))
    for i in range(2):
        assert torch.equal(found[i], large[i] > slow_otsu(large[i].double().numpy()))
    assert not found[2].any()


def square(size: int, *boxes: tuple[int, int, int, int]) -> Tensor:
    masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def slow_ap(hits: list[bool], objects: int) -> float:
    """COCO's: the best precision at each of 101 recalls or beyond, detections by falling score."""
    taken = np.cumsum(hits)
    recall, precision = taken / objects, taken / np.arange(1, len(hits) + 1)
    marks = np.linspace(0, 1, 101)
    return float(np.mean([max(precision[recall >= mark - 1e-12], default=0.0) for mark in marks]))


def test_coco_scores() -> None:
    truth = [
        evaluate.Objects(square(40, (0, 0, 10, 10), (20, 20, 40, 40)), torch.tensor([0, 1])),
        evaluate.Objects(square(40, (0, 0, 20, 20)), torch.tensor([1])),
    ]
    found = [
        evaluate.Objects(
            square(40, (0, 0, 10, 5), (20, 20, 40, 40)), torch.tensor([0, 1]), torch.tensor([0.9, 0.5])
        ),
        evaluate.Objects(square(40, (30, 30, 40, 40)), torch.tensor([1]), torch.tensor([0.8])),
    ]
    areas = {"all": (0.0, 1e10), "large": (300.0, 1e10), "huge": (1e6, 1e10)}
    scores = evaluate.coco_scores(truth, found, ious=(0.4, 0.6), areas=areas, resamples=20)
    # class 0: half of the object was found, which counts at 0.4 alone; class 1: a miss, then a hit
    second = slow_ap([False, True], 2)
    assert float(scores["AP all"][0]) == pytest.approx(((1.0 + 0.0) / 2 + second) / 2)
    assert float(scores["AR all"][0]) == pytest.approx(((1.0 + 0.0) / 2 + 0.5) / 2)
    range_of = evaluate.Estimate.of(scores["AP all"])
    assert 0.0 <= range_of.low <= range_of.value <= range_of.high <= 1.0
    assert "AP large" in scores
    assert "AP huge" not in scores


def test_whole_units_are_drawn_as_scipy_draws_them() -> None:
    """Samples of one unit are drawn together; so many rows alike tell no more than one."""
    stats = pytest.importorskip("scipy.stats")
    units = torch.arange(12).repeat_interleave(5)
    rows = (torch.randn(12, generator=torch.Generator().manual_seed(3))[units]).double()
    found = evaluate.Table("t", (evaluate.Measure("score"),), {"one": {"score": rows}}, units=units)
    cell = found.cells["one"]["score"]
    assert (found.samples, found.independent) == (60, 12)
    means = rows.view(12, 5).mean(1).numpy()
    wanted = stats.bootstrap((means,), np.mean, n_resamples=4000, method="percentile", rng=0)
    low, high = wanted.confidence_interval
    assert (cell.low, cell.high) == pytest.approx((low, high), abs=0.08)
    alone = evaluate.Table("t", (evaluate.Measure("score"),), {"one": {"score": rows}}).cells["one"]["score"]
    assert alone.high - alone.low < 0.7 * (cell.high - cell.low), "sixty rows that are twelve units"
