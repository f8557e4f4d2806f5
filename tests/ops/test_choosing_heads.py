"""Heads that choose their queries: each asks for few alone, and the others get a mean, or nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain

HEADS, WIDTH, TOKENS, ASKED = 2, 8, 6, 4


class Choosing(nn.Module):
    """ProbSparse attention, heads folded into the batch: rows of the map are other queries in each."""

    def __init__(self, filled: bool) -> None:
        super().__init__()
        self.filled = filled
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.map = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (self.folded(layer(x)) for layer in (self.q, self.k, self.v))
        lines, chosen = torch.arange(len(q))[:, None], self.chosen(q, k)
        map = self.map((q[lines, chosen] @ k.mT / 2).softmax(-1))
        found = v.mean(1, keepdim=True).expand_as(v).clone() if self.filled else torch.zeros_like(v)
        found[lines, chosen] = map @ v
        x = x + self.out(found.view(-1, HEADS, TOKENS, WIDTH // HEADS).transpose(1, 2).flatten(2))
        return self.head(x.sum(1))

    @staticmethod
    def folded(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2).flatten(0, 1)

    @staticmethod
    def chosen(q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.mT).amax(-1).topk(ASKED, dim=-1).indices

    def by_hand(self, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
        """The maps [sample, head, query, key], and eq. 5, with a row of zeros for who was not asked for."""
        kept: list[Tensor] = []
        hook = self.map.register_forward_hook(lambda *call: kept.append(call[-1]))
        score = self(x)[:, target].sum()
        hook.remove()
        (gradient,) = torch.autograd.grad(score, kept[0])
        embedded = self.embed(x)
        chosen = self.chosen(self.folded(self.q(embedded)), self.folded(self.k(embedded)))
        place = chosen[..., None].expand(-1, -1, TOKENS)
        whole = [
            torch.zeros(len(chosen), TOKENS, TOKENS).scatter(1, place, values).unflatten(0, (-1, HEADS))
            for values in (kept[0].detach(), (kept[0] * gradient).detach().clamp(min=0))
        ]
        return whole[0], whole[1].mean(1)


@pytest.fixture
def inputs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, TOKENS, 5)


@pytest.mark.parametrize("filled", [False, True])
def test_maps_have_a_head_for_each_choice(filled: bool, inputs: Tensor) -> None:
    model = Choosing(filled).eval()
    traced = fxplain.trace(model, inputs)
    (attention,) = traced.attentions
    assert (attention.kind, attention.heads, attention.queries.size, attention.keys.size) == ("self", 2, 6, 6)
    torch.testing.assert_close(traced.maps(inputs)[0], model.by_hand(inputs, 0)[0])


def test_the_mean_is_over_all_heads(inputs: Tensor) -> None:
    model = Choosing(filled=False).eval()
    result = fxplain.explain(model, inputs, target=1)
    expected = torch.eye(TOKENS) + model.by_hand(inputs, 1)[1]
    torch.testing.assert_close(result.matrix("x", "x"), expected)
