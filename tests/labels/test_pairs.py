"""Tokens that are pairs stay pairs where features of the two tokens of each are added to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn

import fxplain

Outer = Callable[["Pairs", Tensor, Tensor], Tensor]
"""(model, tokens [b, i, d], pairs [b, i, j, 12]) -> pairs with features of their tokens"""

OUTER: dict[str, Outer] = {
    "einsum": lambda m, x, z: z + m.of_outer(torch.einsum("bic,bjd->bijcd", x, x).flatten(-2)),
    "broadcast": lambda m, x, z: (
        z + m.of_outer((x[:, :, None, :, None] * x[:, None, :, None, :]).flatten(-2))
    ),
    "first": lambda m, x, z: m.of_outer(torch.einsum("bic,bjd->bijcd", x, x).flatten(-2)) + z,
    "sum": lambda m, x, z: z + m.wide(x[:, :, None] + x[:, None]),
    "wide sum": lambda m, x, z: z + (m.wide(x)[:, :, None] + m.wide(x)[:, None]),
    "product": lambda m, x, z: z + m.wide(x)[:, :, None] * m.wide(x)[:, None],
    "gate": lambda m, x, z: z * (m.wide(x)[:, :, None] + m.wide(x)[:, None]).sigmoid(),
    "twice": lambda m, x, z: z + m.wide(x)[:, :, None] + m.wide(x)[:, None],
}


class Pairs(nn.Module):
    def __init__(self, outer: Outer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.pairs, self.of_outer, self.wide = (
            nn.Linear(7, 8),
            nn.Linear(5, 12),
            nn.Linear(64, 12),
            nn.Linear(8, 12),
        )
        self.attend, self.head, self.outer = Attend(12), nn.Linear(12, 3), outer

    def forward(self, seq: Tensor, pair: Tensor) -> Tensor:
        z = self.outer(self, self.embed(seq), self.pairs(pair))
        return self.head(z + self.attend(z, z))


@pytest.mark.parametrize("name", OUTER)
def test_pairs_are_tokens(name: str) -> None:
    inputs = torch.randn(2, 4, 7), torch.randn(2, 4, 4, 5)
    traced = fxplain.trace(Pairs(OUTER[name]).eval(), inputs)
    assert [(a.kind, a.queries.name, a.keys.name) for a in traced.attentions] == [("self", "pair", "pair")]
    result = traced.explain(inputs, target=(2, 1, 0))
    row = result.relevance["pair"].view(2, 4, 4)
    assert row[:, 2].any()
    assert not row[:, [0, 1, 3]].any(), "a pair attends along its own row"
    assert result.relevance["seq"].any()


class Edges(nn.Module):
    """Nodes that attend to nodes; scores are told by features of both and of the edge between them."""

    def __init__(self, spelled: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.edges, self.layer, self.head = (
            nn.Linear(7, 8),
            nn.Linear(5, 8),
            Attend(),
            nn.Linear(8, 3),
        )
        self.score = nn.Linear(8, 1)
        self.spelled = spelled

    def forward(self, seq: Tensor, pair: Tensor) -> Tensor:
        x = self.embed(seq)
        q, k = self.layer.q(x)[:, :, None], self.layer.k(x)[:, None]
        if self.spelled == "additive":
            scores = self.score(torch.tanh(q + k + self.edges(pair))).squeeze(-1)
        elif self.spelled == "summed":
            scores = (torch.tanh(q + k + self.edges(pair)) * self.score.weight[0]).sum(-1)
        else:
            scores = self.layer.q(x) @ self.layer.k(x).mT + self.score(self.edges(pair)).squeeze(-1)
        return self.head((x + scores.softmax(-1) @ self.layer.v(x))[:, 0])


@pytest.mark.parametrize("spelled", ["additive", "summed", "a bias"])
def test_edges_in_scores_leave_rows_and_columns(spelled: str) -> None:
    inputs = torch.randn(2, 4, 7), torch.randn(2, 4, 4, 5)
    traced = fxplain.trace(Edges(spelled).eval(), inputs)
    assert [(a.kind, a.queries.name, a.keys.name) for a in traced.attentions] == [("self", "seq", "seq")]
    assert traced.explain(inputs, target=0).relevance["seq"].any()
