"""Attention over depth: what a token was after each layer is mixed, by scores; no token meets another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxplain

WIDTH, HEADS = 8, 2


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(-2)


class OverDepth(nn.Module):
    """Some queries, learned or of the newest state, attend to all states of the same token."""

    def __init__(self, queries: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.query = nn.Parameter(torch.randn(queries, WIDTH)) if queries else None
        self.own = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: list[Tensor]) -> Tensor:
        stacked = torch.stack(states, -2)
        if self.query is None:
            queries = self.own(states[-1]).unsqueeze(-2)
        else:
            queries = self.query.expand(*stacked.shape[:-2], -1, -1)
        if self.fused:
            return functional.scaled_dot_product_attention(queries, stacked, stacked, scale=1.0)[..., 0, :]
        return ((queries @ stacked.mT).softmax(-1) @ stacked)[..., 0, :]


class DeepModel(nn.Module):
    def __init__(self, queries: int, fused: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.first, self.second = SelfAttention(), SelfAttention()
        self.between, self.last = OverDepth(queries, fused), OverDepth(queries, fused)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        y = self.first(x)
        z = self.second(self.between([x, y]))
        logits: Tensor = self.head(self.last([x, y, z])[:, 0])
        return logits


def explained(queries: int, fused: bool) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, ids = DeepModel(queries, fused).eval(), torch.arange(10).view(2, 5)
    traced = fxplain.trace(model, (ids,))
    return traced, traced.explain((ids,), target=0)


@pytest.mark.parametrize("queries", [0, 1, 3])
@pytest.mark.parametrize("fused", [False, True])
def test_versions_of_a_token_are_no_keys(queries: int, fused: bool) -> None:
    traced, _ = explained(queries, fused)
    assert [(a.name, a.kind, a.heads, a.window) for a in traced.attentions] == [
        ("first", "self", HEADS, (5, 5)),
        ("second", "self", HEADS, (5, 5)),
    ]


@pytest.mark.parametrize("queries", [0, 1, 3])
def test_the_kernel_gives_what_the_formula_gives(queries: int) -> None:
    results = [explained(queries, fused)[1] for fused in (False, True)]
    assert list(results[0].relevance) == list(results[1].relevance) == ["ids"]
    torch.testing.assert_close(results[0].relevance["ids"], results[1].relevance["ids"], rtol=0, atol=1e-5)
