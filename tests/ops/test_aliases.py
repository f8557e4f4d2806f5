"""Scores spelled with second names of operations, or with distances instead of products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxplain

Scores = Callable[[Tensor, Tensor], Tensor]


def cosine(q: Tensor, k: Tensor) -> Tensor:
    return functional.cosine_similarity(q[:, :, None], k[:, None], dim=-1).softmax(-1)


def pairwise(q: Tensor, k: Tensor) -> Tensor:
    rows, columns = torch.broadcast_tensors(q[:, :, None], k[:, None])
    return torch.negative(functional.pairwise_distance(rows, columns)).softmax(-1)


SPELLINGS: dict[str, Scores] = {
    "subtract": lambda q, k: torch.subtract(q @ k.mT, 1.0).softmax(-1),
    "divide, special.softmax": lambda q, k: torch.special.softmax(torch.divide(q @ k.mT, 2.0), -1),
    "cdist": lambda q, k: (-torch.cdist(q, k)).softmax(-1),
    "cosine_similarity": cosine,
    "negative, pairwise_distance": pairwise,
}


class Attend(nn.Module):
    def __init__(self, weights: Scores) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        hidden = x + self.weights(self.q(x), self.k(x)) @ self.v(x)
        logits: Tensor = self.head(hidden[:, 0])
        return logits


@pytest.mark.parametrize("name", SPELLINGS)
def test_found_and_explained(name: str) -> None:
    torch.manual_seed(0)
    model, x = Attend(SPELLINGS[name]).eval(), torch.randn(2, 5, 8)
    traced = fxplain.trace(model, x)
    assert [(a.kind, a.heads, a.queries.size, a.keys.size) for a in traced.attentions] == [("self", 1, 5, 5)]
    assert [entry.role for entry in traced.census] == ["attention"]
    hidden = model.embed(x)
    own = SPELLINGS[name](model.q(hidden), model.k(hidden))
    torch.testing.assert_close(traced.maps(x)[0][:, 0], own.detach())
    relevance = traced.explain(x, target=1).relevance["x"]
    assert relevance.sum() > 0
