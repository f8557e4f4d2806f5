"""A softmax over keys that is written out is one, also where nothing but the keys is left in the scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn

import fxplain

Normalise = Callable[[Tensor], Tensor]
"""Scores [batch, heads, query, key] to weights."""


def stable(z: Tensor) -> Tensor:
    e = (z - z.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def by_pairs(z: Tensor) -> Tensor:
    e = torch.exp(z - z.max(dim=-1, keepdim=True)[0])
    return torch.div(e, e.sum(dim=-1).unsqueeze(-1))


def without_gradient(z: Tensor) -> Tensor:
    e = (z - z.amax(-1, keepdim=True).detach()).exp()
    return e / (e.sum(-1, keepdim=True) + 1e-12)


WRITTEN: dict[str, Normalise] = {
    "stable": stable,
    "max and its index": by_pairs,
    "detached, with a small number": without_gradient,
    "unstable": lambda z: z.exp() / z.exp().sum(-1, keepdim=True),
    "log-sum-exp": lambda z: (z - z.logsumexp(-1, keepdim=True)).exp(),
}


class Scored(nn.Module):
    """One query, whose scores are ``score``d: added to the keys, or learned without any query."""

    def __init__(self, normalise: Normalise, score: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.layer, self.head = nn.Linear(5, 8), Attend(), nn.Linear(8, 2)
        self.w = nn.Parameter(torch.randn(8))
        self.to_score, self.to_two = nn.Linear(8, 1, bias=False), nn.Linear(8, 2, bias=False)
        self.normalise, self.score = normalise, score

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """[batch, heads, 1, key]"""
        sums = torch.tanh(q + k)
        if self.score == "added":
            return (sums * self.w).sum(-1)[:, None, None]
        if self.score == "added, linear":
            return self.to_score(sums).squeeze(-1)[:, None, None]
        if self.score == "heads":
            return self.to_two(sums).permute(0, 2, 1)[:, :, None]
        if self.score == "product":
            return (q * k).sum(-1)[:, None, None]
        assert self.score == "learned"
        return self.to_score(torch.tanh(k)).squeeze(-1)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.layer.q(x[:, :1]), self.layer.k(x), self.layer.v(x)
        weights = self.normalise(self.scores(q, k))
        heads = weights.shape[1]
        out = weights @ v.unflatten(-1, (heads, -1)).transpose(1, 2)
        return self.head((x[:, :1] + out.transpose(1, 2).flatten(2))[:, 0])


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("score", ["added", "added, linear", "heads", "product", "learned"])
def test_as_softmax(name: str, score: str) -> None:
    x = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0))
    want = fxplain.trace(Scored(lambda z: z.softmax(-1), score).eval(), x)
    traced = fxplain.trace(Scored(WRITTEN[name], score).eval(), x)
    assert [(a.kind, a.normaliser) for a in traced.attentions] == [(want.attentions[0].kind, "softmax")]
    assert not traced.mixings
    for target in (0, 1):
        found, right = (each.explain(x, target=target).relevance["x"] for each in (traced, want))
        torch.testing.assert_close(found, right)
