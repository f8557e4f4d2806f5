"""A summary of all tokens is of none of them: layers on it make no tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain


class Summarised(nn.Module):
    """Tokens are summed into a few states, layers of their own change these, and every token reads them."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.embed, self.into, self.out = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.states: nn.Module = nn.Conv1d(8, 8, 1) if layer == "conv" else nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(1))
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        weights = self.into(tokens)
        states = tokens.mT @ (weights.softmax(1) * weights)  # [batch, width, state]
        states = self.states(states * states.sigmoid() + states * self.scale)
        tokens = tokens + self.out(tokens) @ states.mT
        weights = (self.query(tokens) @ self.key(tokens).mT).softmax(-1)
        return self.head((tokens + weights @ self.value(tokens)).mean(1))


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_layers_on_a_summary_make_no_tokens(layer: str) -> None:
    torch.manual_seed(0)
    model, x = Summarised(layer).eval(), torch.randn(2, 5, 6)
    traced = fxplain.trace(model, x)
    assert [(space.name, space.size) for space in traced.spaces if space.origin == "input"] == [("x", 5)]
    assert [(a.kind, a.queries.size, a.keys.size) for a in traced.attentions] == [("self", 5, 5)]
    assert "linear attention" in {entry.role for entry in traced.census}
    assert float(traced.explain(x).relevance["x"].sum()) > 0
