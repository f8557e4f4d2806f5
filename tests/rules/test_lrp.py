"""The rules of layer-wise relevance propagation against loops written from the formulas, and conservation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxplain.rules.lrp_maps import centred, positive_head_mean, softmax_taylor
from fxplain.rules.lrp_products import (
    Product,
    alpha_beta_rule,
    bilinear_rule,
    epsilon_rule,
    share,
    transposed,
    weighted,
    z_box_rule,
)
from fxplain.rules.lrp_sums import epsilon_split, gamma_split, normalised_split
from fxplain.rules.rows import Reading
from fxplain.rules.transformer_attribution import cross_increment

SIZES = st.integers(1, 4)
SEEDS = st.integers(0, 2**16)
few = settings(max_examples=40, deadline=None)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def matrix_of(product: Product, w: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The linear map x -> product(x, w) as a matrix [output, input], one unit vector after the other."""
    count = torch.Size(shape).numel()
    units = torch.eye(count, dtype=w.dtype).reshape(count, *shape)
    return torch.stack([product(unit, w).reshape(-1) for unit in units], 1)


def looped(w: Tensor, x: Tensor, relevance: Tensor, part: Callable[[float], float], total: float) -> Tensor:
    """R_i = Σ_j part(x_i w_ji) / (Σ_i part(x_i w_ji) + total_j) R_j."""
    result = torch.zeros_like(x)
    for j in range(len(w)):
        products = [part(float(x[i] * w[j, i])) for i in range(len(x))]
        below = sum(products) + total
        for i in range(len(x)):
            if below != 0:
                result[i] += products[i] / below * relevance[j]
    return result


PRODUCTS: dict[str, tuple[Product, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "linear": (F.linear, (2, 3), (4, 3), (2, 4)),
    "matmul": (torch.matmul, (2, 3), (3, 4), (2, 4)),
    "batched": (torch.matmul, (2, 2, 3), (2, 3, 2), (2, 2, 2)),
    "conv1d": (F.conv1d, (1, 2, 5), (3, 2, 2), (1, 3, 4)),
    "conv2d": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), (1, 2, 4, 4), (2, 2, 3, 3), (1, 2, 2, 2)),
    "conv_transpose1d": (F.conv_transpose1d, (1, 2, 3), (2, 3, 2), (1, 3, 4)),
    "einsum": (lambda x, w: torch.einsum("bif,jf->bij", x, w), (1, 2, 3), (2, 3), (1, 2, 2)),
}


@pytest.mark.parametrize("name", list(PRODUCTS))
@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "alpha_beta"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_product_with_a_weight_equals_the_loop(name: str, rule: str, seed: int) -> None:
    product, of_x, of_w, of_out = PRODUCTS[name]
    x, w, relevance = draw(seed, of_x, of_w, of_out)
    matrix, flat, seeds = matrix_of(product, w, of_x), x.reshape(-1), relevance.reshape(-1)
    if rule == "epsilon":
        found = epsilon_rule(product, x, w, product(x, w), relevance, 0.0)
        expected = looped(matrix, flat, seeds, lambda z: z, 0.0)
    else:
        alpha = 1.0 if rule == "z_plus" else 2.0
        found = alpha_beta_rule(product, x, w, relevance, alpha)
        terms = matrix * flat
        share_of_positive = torch.full_like(seeds, alpha)
        if alpha == 2.0:  # where one of the parts is empty, the other takes all
            share_of_positive[(terms >= 0).all(1)] = 1.0
            share_of_positive[(terms <= 0).all(1)] = 0.0
        positive = looped(matrix, flat, seeds * share_of_positive, lambda z: max(z, 0.0), 0.0)
        expected = positive + looped(
            matrix, flat, seeds * (1 - share_of_positive), lambda z: min(z, 0.0), 0.0
        )
    same(found.reshape(-1), expected)


@few
@given(SEEDS, SIZES, SIZES)
def test_products_with_a_weight_conserve(seed: int, rows: int, features: int) -> None:
    x, w, relevance = draw(seed, (rows, features), (3, features), (rows, 3))
    same(epsilon_rule(F.linear, x, w, F.linear(x, w), relevance, 0.0).sum(), relevance.sum())
    same(alpha_beta_rule(F.linear, x, w, relevance, 2.0).sum(), relevance.sum())
    reached = ((x[:, None] * w).clamp(min=0).sum(-1) > 0).to(relevance.dtype)
    same(alpha_beta_rule(F.linear, x, w, relevance, 1.0).sum(), (relevance * reached).sum())


def test_epsilon_and_bias_take_their_share() -> None:
    x, w, bias, relevance = draw(3, (2, 3), (4, 3), (4,), (2, 4))
    output = F.linear(x, w, bias)
    found = epsilon_rule(F.linear, x, w, output, relevance, 0.1)
    below = output + 0.1 * output.sign()
    same(found, torch.einsum("bi,ji,bj->bi", x, w, relevance / below))


def test_the_z_box_equals_the_loop_and_conserves() -> None:
    x, w, relevance = draw(4, (2, 2, 4, 4), (3, 2, 2, 2), (2, 3, 2, 2))
    product: Product = lambda a, b: F.conv2d(a, b, stride=2)  # noqa: E731
    found = z_box_rule(product, x, w, relevance)
    for sample in range(2):
        one, flat = x[sample : sample + 1], x[sample].reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        matrix = matrix_of(product, w, one.shape)
        terms = matrix * flat - low * matrix.clamp(min=0) - high * matrix.clamp(max=0)
        expected = (terms / terms.sum(1, keepdim=True) * relevance[sample].reshape(-1, 1)).sum(0)
        same(found[sample].reshape(-1), expected)
    same(found.sum(), relevance.sum())


@few
@given(SEEDS, SIZES, SIZES, SIZES)
def test_two_activations_equal_the_loop_and_conserve(seed: int, n: int, k: int, m: int) -> None:
    a, b, relevance = draw(seed, (n, k), (k, m), (n, m))
    of_a, of_b = bilinear_rule(torch.matmul, a, b, relevance)
    to_a, to_b = torch.zeros_like(a), torch.zeros_like(b)
    for row in range(n):
        for column in range(m):
            below = sum(float(a[row, i] * b[i, column]) for i in range(k))
            for i in range(k):
                part = a[row, i] * b[i, column] / below * relevance[row, column] / 2
                to_a[row, i] += part
                to_b[i, column] += part
    same(of_a, to_a)
    same(of_b, to_b)
    same(of_a.sum() + of_b.sum(), relevance.sum())


@few
@given(SEEDS, SIZES)
def test_additions_equal_the_loop_and_conserve(seed: int, size: int) -> None:
    a, b, relevance = draw(seed, (size,), (size,), (size,))
    plain = epsilon_split([a, b], relevance, 0.0)
    for i in range(size):
        same(plain[0][i], a[i] / (a[i] + b[i]) * relevance[i])
    same(plain[0] + plain[1], relevance)

    scaled = normalised_split([a, b], relevance)
    sums = [abs(float(part.sum())) for part in plain]
    for part, total, before in zip(scaled, sums, plain, strict=True):
        same(part.sum(), relevance.sum() * total / sum(sums))
        same(part * before.sum(), before * part.sum())
    same(scaled[0].sum() + scaled[1].sum(), relevance.sum())

    same(gamma_split([a, b], relevance, 0.0, 0.0)[0], plain[0])
    for i in range(size):
        sign = 1.0 if a[i] + b[i] >= 0 else -1.0
        grown = [float(z[i]) * (1.25 if float(z[i]) * sign > 0 else 1.0) for z in (a, b)]
        same(gamma_split([a, b], relevance, 0.25, 0.0)[1][i], grown[1] / sum(grown) * relevance[i])


def test_the_normalised_rule_survives_terms_that_cancel() -> None:
    """The plain rule gives two huge parts of opposite sign; scaled, neither exceeds the whole."""
    a, b = torch.tensor([1.0, 1.0]), torch.tensor([-1.0001, 2.0])
    parts = normalised_split([a, b], torch.tensor([1.0, 1.0]))
    assert all(abs(float(part.sum())) <= 2.0 for part in parts)
    torch.testing.assert_close(parts[0].sum() + parts[1].sum(), torch.tensor(2.0))


@few
@given(SEEDS, SIZES)
def test_softmax_by_taylor_is_gradient_times_input(seed: int, size: int) -> None:
    scores, relevance = draw(seed, (2, size), (2, size))
    weights = scores.softmax(-1)
    jacobian = torch.stack([torch.diag(row) - torch.outer(row, row) for row in weights])
    # a relevance that is w · s for some s: R_i = x_i Σ_j (∂s_j/∂x_i) R_j / s_j
    expected = scores * torch.einsum("bji,bj->bi", jacobian, relevance / weights)
    same(softmax_taylor(scores, weights, relevance, -1), expected)


def test_masked_scores_get_nothing() -> None:
    scores = torch.tensor([0.5, -torch.inf, 2.0])
    found = softmax_taylor(scores, scores.softmax(-1), torch.tensor([1.0, 0.0, 1.0]), -1)
    assert torch.isfinite(found).all()
    assert found[1] == 0


def test_a_centred_norm_keeps_its_statistic() -> None:
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(centred(x, [1], 1e-5), F.layer_norm(x, (5,)))
    (found,) = torch.autograd.grad(centred(x, [1], 1e-5)[0, 0], x)
    deviation = (x[0].var(correction=0) + 1e-5).sqrt()
    same(found[0], (torch.eye(5, dtype=torch.float64)[0] - 0.2) / deviation.detach())


def test_shares_of_nothing_are_nothing() -> None:
    found = share(torch.ones(3), torch.tensor([0.0, -torch.inf, torch.nan]), 1e-9)
    assert found.tolist() == [0.0, 0.0, 0.0]
    assert weighted(torch.tensor([torch.inf, 2.0]), torch.tensor([0.0, 3.0])).tolist() == [0.0, 6.0]


def test_complex_numbers_are_pairs_of_real_ones() -> None:
    """A rotation by complex numbers shares relevance as the same rotation of pairs does."""
    pairs, turn, relevance = draw(5, (3, 2), (3,), (3, 2))
    by = torch.polar(torch.ones_like(turn), turn)

    def rotated(x: Tensor, w: Tensor) -> Tensor:
        return torch.stack([x[:, 0] * w.cos() - x[:, 1] * w.sin(), x[:, 0] * w.sin() + x[:, 1] * w.cos()], 1)

    x = torch.view_as_complex(pairs)
    of_complex = torch.view_as_complex(relevance)
    found = weighted(x, transposed(torch.mul, x, by, share(of_complex, x * by)))
    expected = epsilon_rule(rotated, pairs, turn, rotated(pairs, turn), relevance, 0.0)
    same(torch.view_as_real(found), expected)


def test_heads_are_averaged_after_the_clamp() -> None:
    relevance = torch.tensor([[[1.0, -3.0]], [[2.0, 1.0]]])
    assert positive_head_mean(relevance, 0).tolist() == [[1.5, 0.5]]


def test_a_cross_attention_of_attribution_is_its_map_alone() -> None:
    """What the keys have attended to is left out, what they were made of is not."""
    queries, keys = torch.tensor([0]), torch.tensor([1, 2])
    key_rows = torch.zeros(1, 2, 4)
    key_rows[0, 0, 2] = 5.0  # key 1 has attended to key 2
    key_rows[0, 1, 3] = 0.5  # key 2 was made of token 3
    weights = torch.tensor([[[0.25, 0.75]]])
    reached = torch.tensor([False, True, True, True])
    update = cross_increment(Reading(weights, queries, keys, torch.zeros(1, 1, 4), key_rows, reached))
    assert update.values.tolist() == [[[0.0, 0.25, 0.75, 0.375]]]
    assert update.replaced is not None
    assert update.replaced.tolist() == [False, True, True, True]
