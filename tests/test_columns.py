"""Columns of a table as tokens: numbers become vectors in many ways, and stay tokens of their input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain

COLUMNS, WIDTH = 5, 8


class Table(nn.Module):
    """One self-attention over a class token and the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.vectors, self.bias = (nn.Parameter(torch.randn(COLUMNS, WIDTH)) for _ in range(2))
        self.one = nn.Parameter(torch.randn(WIDTH))
        self.each = nn.ModuleList(nn.Linear(1, WIDTH) for _ in range(COLUMNS))
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)

    def embed(self, numbers: Tensor) -> Tensor:
        return numbers.unsqueeze(-1) * self.vectors + self.bias

    def forward(self, numbers: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(numbers), -1, -1), self.embed(numbers)], 1)
        x = x + (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)
        logits: Tensor = self.head(x[:, 0])
        return logits


class VectorFirst(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        return self.one * numbers[..., None] + self.bias


class Einsum(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        return torch.einsum("bn,nd->bnd", numbers, self.vectors)


class Periodic(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        waves = torch.cat([(f := numbers[..., None] * self.bias[:, :4]).cos(), f.sin()], -1)
        return waves * self.vectors


class Slices(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        return torch.stack([layer(numbers[:, i : i + 1]) for i, layer in enumerate(self.each)], 1)


class Selected(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        return torch.stack([layer(numbers[:, i].unsqueeze(-1)) for i, layer in enumerate(self.each)], 1)


class Unbound(Table):
    def embed(self, numbers: Tensor) -> Tensor:
        pairs = zip(self.each, numbers.split(1, -1), strict=True)
        return torch.stack([layer(column) for layer, column in pairs], 1)


@pytest.mark.parametrize("model", [Table, VectorFirst, Einsum, Periodic, Slices, Selected, Unbound])
def test_columns_are_tokens_of_the_input(model: type[Table]) -> None:
    numbers = torch.randn(2, COLUMNS)
    traced = fxplain.trace(model().eval(), numbers)
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size) == ("self", COLUMNS + 1)
    result = traced.explain(numbers, target=0)
    assert {name: tuple(r.shape) for name, r in result.relevance.items()} == {
        "first": (2, 1),
        "numbers": (2, COLUMNS),
    }
