"""Data that nothing has made tokens of, where they meet tokens: they become tokens, or a note says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain

IDS = torch.tensor([[7, 3, 12, 5], [1, 2, 3, 4]])


class Attend(nn.Module):
    """One head, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.query(x) @ self.key(x).mT / 8**0.5).softmax(-1) @ self.value(x)


class Beside(nn.Module):
    """Words attend; then numbers come to them, as they are or through a linear map that changes nothing."""

    def __init__(self, how: str, mapped: bool = False) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(20, 8), Attend(), Attend()
        self.join, self.head, self.wide, self.how = nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(12, 3), how
        self.identity = None
        if mapped:
            width = 8 if how in ("tokens", "add", "scale") else 4
            self.identity = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.identity.weight)

    def forward(self, ids: Tensor, raw: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.first(x)
        raw = raw if self.identity is None else self.identity(raw)
        if self.how == "tokens":
            x = torch.cat([x, raw], 1)
        elif self.how == "features":
            x = self.join(torch.cat([x, raw], -1))
        elif self.how == "features first":
            x = self.join(torch.cat([raw, x], -1))
        elif self.how == "one token":
            return self.wide(torch.cat([x[:, 0], raw], -1))
        elif self.how == "add":
            x = x + raw
        elif self.how == "scale":
            x = x * raw
        elif self.how == "for all":
            x = self.join(torch.cat([x, raw[:, None].expand(-1, x.shape[1], -1)], -1))
        return self.head((x + self.second(x))[:, 0])


SHAPES = {
    "tokens": (2, 3, 8),
    "features": (2, 4, 4),
    "features first": (2, 4, 4),
    "one token": (2, 4),
    "add": (2, 4, 8),
    "scale": (2, 4, 8),
    "for all": (2, 4),
}


@pytest.mark.parametrize("how", ["tokens", "features", "features first", "one token"])
def test_raw_data_beside_tokens_are_tokens_as_if_they_had_been_embedded(how: str) -> None:
    results = []
    for mapped in (False, True):
        torch.manual_seed(0)
        model = Beside(how).double().eval()
        if mapped:
            model = Beside(how, mapped=True).double().eval()
            torch.manual_seed(0)
            model.load_state_dict(Beside(how).double().state_dict(), strict=False)
        torch.manual_seed(1)
        inputs = {"ids": IDS, "raw": torch.randn(SHAPES[how], dtype=torch.float64)}
        results.append(fxplain.explain(model, inputs, target=1))
    raw, embedded = results
    assert list(raw.relevance) == list(embedded.relevance)
    assert bool((raw.relevance["raw"] > 0).any())
    for name, values in raw.relevance.items():
        torch.testing.assert_close(values, embedded.relevance[name])


@pytest.mark.parametrize("how", ["add", "scale", "for all"])
@pytest.mark.parametrize("mapped", [False, True])
def test_raw_data_that_go_into_other_tokens_are_told(how: str, mapped: bool) -> None:
    torch.manual_seed(0)
    inputs = {"ids": IDS, "raw": torch.randn(SHAPES[how])}
    result = fxplain.explain(Beside(how, mapped).eval(), inputs, target=1)
    assert list(result.relevance) == ["ids"]
    assert any(note.startswith("raw has no tokens of its own") for note in result.notes)


class Biased(nn.Module):
    """An input that only biases scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, bias: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(((x @ x.mT + bias[:, None]).softmax(-1) @ x)[:, 0])


def test_a_bias_of_scores_is_told_to_make_weights() -> None:
    torch.manual_seed(0)
    result = fxplain.explain(Biased().eval(), {"ids": IDS, "bias": torch.randn(2, 4)}, target=1)
    (note,) = result.notes
    assert note.startswith("bias has no tokens of its own")
    assert "only makes weights" in note
