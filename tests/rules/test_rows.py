"""Products through rows of R, safe division, and mixing, against loops."""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.rules.rows import Reading, carry, divide_rows, through


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_through_is_the_product_with_identity_plus_excess() -> None:
    weights, excess, tokens = draw(2, 3, 2), draw(2, 2, 5, seed=1), torch.tensor([3, 1])
    expected = torch.zeros(2, 3, 5, dtype=torch.float64)
    for b in range(2):
        for i in range(3):
            for j in range(5):
                for n, token in enumerate(tokens.tolist()):
                    expected[b, i, j] += weights[b, i, n] * (excess[b, n, j] + (token == j))
    torch.testing.assert_close(through(weights, excess, tokens), expected, rtol=1e-14, atol=0)


def test_division_by_zero_is_zero_in_value_only_there() -> None:
    found = divide_rows(torch.tensor([[2.0, 0.0], [5.0, 7.0]]), torch.tensor([[4.0], [0.0]]))
    assert torch.equal(found, torch.tensor([[0.5, 0.0], [0.0, 0.0]]))


def test_carry_is_the_weighted_mean_of_the_old_rows() -> None:
    weights, excess = draw(1, 2, 3), draw(1, 3, 6, seed=1)
    weights[0, 1] = 0  # nothing is known of the second token: it takes nothing over
    new, old = torch.tensor([4, 5]), torch.tensor([0, 1, 2])
    found = carry(Reading(weights, new, old, torch.zeros(1, 2, 6), excess, torch.ones(6, dtype=torch.bool)))
    expected = torch.zeros(6, dtype=torch.float64)
    for j in range(6):
        for n in range(3):
            expected[j] += weights[0, 0, n] / weights[0, 0].sum() * (excess[0, n, j] + (n == j))
    torch.testing.assert_close(found.values[0, 0], expected, rtol=1e-14, atol=0)
    assert not found.values[0, 1].any()
    assert found.replaced is None
