"""Learned maps that pool tokens are an attention, unless queries read what was pooled by its features."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxplain

WIDTH, POOLED, LEFT, RIGHT = 8, 3, 5, 4

Read = Callable[[Tensor, Tensor], Tensor]


def compared(u: Tensor, v: Tensor) -> Tensor:
    return (u @ v.mT).sum(1)


def compared_by_letters(u: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("b...md,bd->b...m", u, v.mean(1))


def compared_laid_out(u: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(v, u.transpose(1, 2).contiguous()).amax(2)


def asked_for(u: Tensor, v: Tensor) -> Tensor:
    """A poly-encoder: what is compared attends to the pooled tokens."""
    weights = (v @ u.mT).softmax(-1)
    return ((weights @ u) * v).sum(-1)


class Pair(nn.Module):
    """One text is pooled by learned maps and meets another."""

    def __init__(self, by_codes: bool, read: Read) -> None:
        super().__init__()
        self.read = read
        self.embed = nn.Embedding(30, WIDTH)
        self.codes = nn.Parameter(torch.randn(POOLED, WIDTH)) if by_codes else None
        self.hidden, self.hops = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, POOLED, bias=False)
        self.other = nn.Linear(WIDTH, WIDTH)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        x = self.embed(one)
        if self.codes is not None:
            maps = (self.codes @ x.mT).softmax(-1)
        else:
            maps = self.hops(torch.tanh(self.hidden(x))).softmax(1).mT
        return self.read(maps @ x, self.other(self.embed(two)))


class Linear(nn.Module):
    """Normalised keys times values, which normalised queries read: linear attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, one: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(one)).chunk(3, -1)
        logits: Tensor = self.head((q.softmax(-1) @ (k.softmax(1).mT @ v)).mean(1))
        return logits


def ids(length: int, seed: int) -> Tensor:
    return torch.randint(1, 30, (2, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("read", [compared, compared_by_letters, compared_laid_out, asked_for])
@pytest.mark.parametrize("by_codes", [False, True])
def test_pooled_tokens_that_are_compared_were_attended_to(by_codes: bool, read: Read) -> None:
    torch.manual_seed(0)
    inputs = ids(LEFT, 0), ids(RIGHT, 1)
    traced = fxplain.trace(Pair(by_codes, read).eval(), inputs)
    first, *others = traced.attentions
    assert (first.queries.size, first.keys.name, first.keys.size) == (POOLED, "one", LEFT)
    assert [(a.kind, a.queries.name, a.keys.size) for a in others] == (
        [("encoder_decoder", "two", POOLED)] if read is asked_for else []
    )
    result = traced.explain(inputs, target=0)
    assert float(result.relevance["one"].abs().sum()) > 0


def test_features_that_queries_read_are_no_tokens() -> None:
    torch.manual_seed(0)
    traced = fxplain.trace(Linear().eval(), (ids(LEFT, 0),))
    assert not traced.attentions
    assert {entry.role for entry in traced.census} == {"linear attention"}
