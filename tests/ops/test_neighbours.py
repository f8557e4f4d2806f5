"""Attention to a few keys that were picked for each query, scored by sums and not by products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain

BATCH, TOKENS, PICKED, HEADS, DIM = 2, 6, 3, 2, 4
WIDTH = HEADS * DIM


class Neighbours(nn.Module):
    """Every token reads the neighbours that an index tells."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.score = nn.Linear(WIDTH, WIDTH if how == "channels" else HEADS)
        self.pair = nn.Linear(2 * WIDTH, WIDTH)
        self.map = nn.Identity()

    def picked(self, tensor: Tensor, near: Tensor) -> Tensor:
        if self.how == "features":
            return tensor[torch.arange(len(tensor))[:, None, None], near]
        wide = near.flatten(1).unsqueeze(-1).expand(-1, -1, WIDTH)
        return tensor.gather(1, wide).unflatten(1, near.shape[1:])

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        x = self.embed(x)
        query, key, value = self.query(x), self.picked(self.key(x), near), self.picked(self.value(x), near)
        if self.how == "features":
            both = torch.cat([query.unsqueeze(2).expand_as(key), key], -1)
            scores = self.score(self.pair(both).tanh())
        elif self.how == "channels":  # a weight for each feature
            scores = self.score((query.unsqueeze(2) - key).relu())
        else:
            scores = self.score(nn.functional.leaky_relu(query[:, :, None] + key, 0.2))
        weights = self.map(scores.softmax(2))
        if self.how == "channels":
            read = torch.einsum("bnkc,bnkc->bnc", weights, value)
        else:
            read = (weights.unsqueeze(-1) * value.unflatten(-1, (HEADS, DIM))).sum(2).flatten(2)
        logits: Tensor = self.head((x + read)[:, 0])
        return logits


def reference(model: Neighbours, x: Tensor, near: Tensor, target: int) -> Tensor:
    maps: list[Tensor] = []
    hook = model.map.register_forward_hook(lambda *a: maps.append(a[2]))
    score = model(x, near)[:, target].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(score, maps)
    weights = (gradient * maps[0]).clamp(min=0).mean(-1).detach()  # [batch, query, picked]
    found = torch.zeros(len(x), TOKENS, TOKENS).scatter_add(2, near, weights)[:, 0]
    return found.index_fill(1, torch.tensor([0]), 0.0)  # the own entry of the row is set aside


@pytest.mark.parametrize("how", ["sums", "features", "channels"])
def test_queries_added_to_their_own_keys_are_the_rows(how: str) -> None:
    torch.manual_seed(0)
    model, x = Neighbours(how).eval(), torch.randn(BATCH, TOKENS, 3)
    near = torch.rand(BATCH, TOKENS, TOKENS).argsort(-1)[..., :PICKED]
    traced = fxplain.trace(model, (x, near))
    found = [(a.kind, a.queries.name, a.queries.size, a.keys.name, a.heads) for a in traced.attentions]
    assert found == [("self", "x", TOKENS, "x", WIDTH if how == "channels" else HEADS)]
    assert not traced.mixings
    for target in range(3):
        result = traced.explain((x, near), target=target)
        torch.testing.assert_close(result.relevance["x"], reference(model, x, near, target))


def test_a_condition_far_from_the_scores_asks_nothing() -> None:
    class Pooled(nn.Module):
        """A vector for each group is added to its members; some layers later, they are pooled by scores."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.group = nn.Linear(3, WIDTH), nn.Linear(5, WIDTH)
            self.layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH), nn.ReLU()] * 3)
            self.score, self.head = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor, group: Tensor) -> Tensor:
            x = self.layers(self.embed(x) + self.group(group).unsqueeze(2))
            logits: Tensor = self.head((self.score(x).softmax(2) * x).sum(2)[:, 0])
            return logits

    traced = fxplain.trace(Pooled().eval(), (torch.randn(BATCH, 4, 5, 3), torch.randn(BATCH, 4, 5)))
    assert all("group" not in attention.queries.spaces for attention in traced.attentions)
