"""Net relevancy's weights against loops over numbers, in float64, and the laws they keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxplain.rules.net_relevancy import centred_gradients, net, signed_head_mean
from fxplain.rules.relevancy import head_mean_relevance


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def slow_net(maps: Tensor, gradients: Tensor) -> Tensor:
    heads, rows, columns = maps.shape
    out = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            total = sum(float(gradients[h, i, j] * maps[h, i, j]) for h in range(heads))
            out[i, j] = max(total / heads, 0.0)
    return out


def slow_centred(maps: Tensor, gradients: Tensor) -> Tensor:
    heads, rows, columns = maps.shape
    out = torch.zeros_like(maps)
    for h in range(heads):
        for i in range(rows):
            total = sum(float(maps[h, i, j]) for j in range(columns))
            mean = sum(float(maps[h, i, j] * gradients[h, i, j]) for j in range(columns)) / (total or 1.0)
            for j in range(columns):
                out[h, i, j] = gradients[h, i, j] - mean
    return out


def test_the_clamp_comes_after_all_heads_are_added_up() -> None:
    maps, gradients = draw(3, 4, 5).softmax(-1), draw(3, 4, 5, seed=1)
    close(net(signed_head_mean(maps, gradients, 0)), slow_net(maps, gradients))
    assert not torch.allclose(slow_net(maps, gradients), head_mean_relevance(maps, gradients, 0))


@pytest.mark.parametrize("rows", ["of a softmax", "that sum to less", "of zeros"])
def test_gradients_are_centred_row_by_row(rows: str) -> None:
    maps, gradients = draw(2, 3, 4).softmax(-1), draw(2, 3, 4, seed=1)
    maps = maps * {"of a softmax": 1.0, "that sum to less": 0.7, "of zeros": 0.0}[rows]
    close(centred_gradients(maps, gradients, -1), slow_centred(maps, gradients))


def test_centred_gradients_are_those_of_the_scores_before_the_softmax() -> None:
    scores, values = draw(2, 3, 4).requires_grad_(), draw(2, 4, 5, seed=1)
    maps = scores.softmax(-1)
    score = ((maps @ values) * draw(2, 3, 5, seed=2)).sum()
    wanted, gradients = torch.autograd.grad(score, (scores, maps))
    close(maps.detach() * centred_gradients(maps.detach(), gradients, -1), wanted)


def test_values_that_are_shifted_alike_change_nothing_where_gradients_are_centred() -> None:
    """∇A = g valueᵀ, so a vector added to all values adds one number to each row of ∇A."""
    maps, values, outer = draw(2, 3, 4).softmax(-1), draw(2, 4, 5, seed=1), draw(2, 3, 5, seed=2)
    plain, shifted = (outer @ (values + shift).mT for shift in (torch.zeros(5).double(), draw(5, seed=3)))
    assert not torch.allclose(plain, shifted)
    close(centred_gradients(maps, plain, -1), centred_gradients(maps, shifted, -1))


def parted_heads() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """An attention (maps, gradients), and the same with its first head as two that share its map."""
    maps, values, outer = draw(2, 3, 4).softmax(-1), draw(2, 4, 5, seed=1), draw(2, 3, 5, seed=2)
    part = draw(4, 5, seed=3)
    parts = torch.stack([values[0] + part, -part, values[1]])
    more, grown = maps[[0, 0, 1]], outer[[0, 0, 1]]
    return (maps, outer @ values.mT), (more, grown @ parts.mT)


def test_how_heads_are_divided_does_not_matter() -> None:
    (maps, gradients), (more, others) = parted_heads()
    close(2 * net(signed_head_mean(maps, gradients, 0)), 3 * net(signed_head_mean(more, others, 0)))
    one, other = 2 * head_mean_relevance(maps, gradients, 0), 3 * head_mean_relevance(more, others, 0)
    assert not torch.allclose(one, other), "eq. 5 counts what cancels between the two"


def test_heads_that_cancel_on_a_sink_leave_nothing_there() -> None:
    maps = torch.tensor([[[0.9, 0.1]], [[0.9, 0.1]]], dtype=torch.float64)
    gradients = torch.tensor(
        [[[5.0, 1.0]], [[-5.0, 1.0]]], dtype=torch.float64
    )  # the first token is the sink
    found, eq_5 = net(signed_head_mean(maps, gradients, 0)), head_mean_relevance(maps, gradients, 0)
    close(found, torch.tensor([[0.0, 0.1]], dtype=torch.float64))
    assert eq_5[0, 0] > 20 * eq_5[0, 1]


@pytest.mark.parametrize("nothing", [None, "zeros"])
def test_nan_is_never_multiplied_by_a_missing_gradient(nothing: str | None) -> None:
    maps = torch.tensor([[[float("nan"), 0.5], [float("inf"), 0.5]]])
    gradients = None if nothing is None else torch.zeros_like(maps)
    assert torch.equal(signed_head_mean(maps, gradients, 0), torch.zeros(2, 2))


def test_half_precision_does_not_underflow() -> None:
    maps = torch.full((1, 1, 1), 1e-4, dtype=torch.float16)
    assert signed_head_mean(maps, maps, 0).item() == pytest.approx(1e-8, rel=1e-2)
    assert centred_gradients(maps, maps, -1).dtype == torch.float32
