"""Knock-outs: the score where no attention reads some tokens, against masks written out by hand."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.attribution.knock_out import masked_rows
from fxplain.errors import MethodError

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Reader(nn.Module):
    """Two layers of two heads, in one kernel or written out, and a score at the last token."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(4)) for _ in range(2))
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        for query, key, value, out in self.layers:  # type: ignore[misc]
            q, k, v = (own(x).unflatten(-1, (2, 4)).transpose(1, 2) for own in (query, key, value))
            seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
            seen = seen.tril() if self.how == "causal" else seen
            if self.hidden is not None:  # the reference: scores of -inf, but for a token's own
                own = torch.eye(x.shape[1], dtype=torch.bool)
                seen = seen & (~self.hidden[:, None, None, :] | own)
            if self.how == "written out" or self.hidden is not None:
                scores = (q @ k.mT / 2).masked_fill(~seen, -torch.inf)
                mixed = scores.softmax(-1) @ v
            elif self.how == "causal":
                mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + out(mixed.transpose(1, 2).flatten(2))
        return x[:, -1]


HOW = ["kernel", "causal", "written out"]


def reader(how: str) -> Reader:
    return Reader(how).double().eval()


@pytest.mark.parametrize("how", HOW)
def test_the_score_is_that_of_a_model_with_masks(how: str) -> None:
    model = reader(how)
    result = fxplain.explain(model, X, target=3)
    found = result.knock_out(2)
    best = result.relevance["x"].argsort(descending=True)[:, :2]
    assert found.tokens == tuple(tuple(f"x[{int(token)}]" for token in own) for own in best)
    by_hand = reader(how)
    by_hand.hidden = torch.zeros(2, 6, dtype=torch.bool).scatter(1, best, value=True)
    expected = by_hand(X)[:, 3]
    torch.testing.assert_close(found.without, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found.without, found.score)
    torch.testing.assert_close(found.score, model(X)[:, 3])


@pytest.mark.parametrize("how", HOW)
def test_nothing_removed_changes_nothing(how: str) -> None:
    result = fxplain.explain(reader(how), X, target=3)
    torch.testing.assert_close(result.knock_out(0).without, result.score)


def test_a_sample_is_knocked_out_as_it_would_be_alone() -> None:
    traced = fxplain.trace(reader("kernel"), X)
    both = traced.explain(X, target=3).knock_out(2)
    alone = traced.explain(X[1:], target=3).knock_out(2)
    assert both.tokens[1:] == alone.tokens
    torch.testing.assert_close(both.without[1:], alone.without)
    torch.testing.assert_close(both.at_random[:, 1:], alone.at_random)


def test_tokens_in_another_order_give_the_same() -> None:
    order = torch.tensor([3, 1, 0, 4, 2, 5])  # the last is read
    one, other = (
        fxplain.explain(reader("kernel"), x, target=3).knock_out(2).without for x in (X, X[:, order])
    )
    torch.testing.assert_close(one, other)


def test_others_are_drawn_beside_the_most_relevant() -> None:
    found = fxplain.explain(reader("kernel"), X, target=3).knock_out(2, draws=4)
    assert found.at_random.shape == (4, 2)
    assert "without 2 others (mean of 4 draws" in str(found)
    assert len(str(found).splitlines()) == 2
    most = fxplain.explain(reader("kernel"), X, target=3).knock_out(4)
    assert most.at_random.shape == (0, 2), "of five tokens there are not four others"
    assert "no others to compare with" in str(most)


def test_a_check_notes_the_evidence() -> None:
    result = fxplain.explain(reader("kernel").float(), X.float(), target=3, check=True)
    notes = [note for note in result.notes if note.startswith("knock-out")]
    lines = str(result.knock_out(1)).splitlines()
    assert notes == [f"knock-out of sample {sample}: {line}" for sample, line in enumerate(lines)]


def test_a_copy_has_no_model() -> None:
    copy = pickle.loads(pickle.dumps(fxplain.explain(reader("kernel"), X, target=3)))
    with pytest.raises(MethodError, match="explain again"):
        copy.knock_out(2)


def test_a_row_of_which_nothing_is_left_is_zero() -> None:
    left = torch.tensor([[False, False], [True, False]])
    assert masked_rows(torch.full((2, 2), 0.5), left, (1,)).tolist() == [[0, 0], [1, 0]]


class Both(nn.Module):
    """Two streams: the first reads itself and the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside = nn.MultiheadAttention(8, 2, batch_first=True)
        self.across = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.inside(x, x, x, need_weights=False)[0]
        return (x + self.across(x, y, y, need_weights=False)[0])[:, 0]


def test_a_share_of_the_evidence_and_what_is_left_without_it() -> None:
    inputs = {"x": X[:1], "y": X[1:, :4]}
    model = Both().double().eval()
    result = fxplain.explain(model, inputs, target=3)
    assert set(result.shares) == {"x", "y"}
    torch.testing.assert_close(result.shares["x"] + result.shares["y"], torch.ones(1, dtype=torch.float64))
    found = result.knock_out("y")
    assert {name[0] for name in found.tokens[0]} == {"y"}
    assert len(found.tokens[0]) == 4
    with torch.no_grad():  # no attention reads y: the cross attention gives its bias alone
        x = inputs["x"] + model.inside(*[inputs["x"]] * 3, need_weights=False)[0]
        expected = (x + model.across.out_proj.bias)[:, 0, 3]
    torch.testing.assert_close(found.without, expected)
