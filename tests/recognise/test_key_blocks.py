"""Keys that are gone through in blocks: how they are cut changes nothing, down to blocks of one key."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn

import fxplain

Sizes = Sequence[int]
Way = Callable[[Tensor, Tensor, Tensor, Sizes], Tensor]
"""(queries, keys, values [batch, heads, tokens, d], sizes of the blocks) -> output"""


def blocks(k: Tensor, v: Tensor, sizes: Sizes) -> zip[tuple[Tensor, Tensor]]:
    return zip(k.split(list(sizes), -2), v.split(list(sizes), -2), strict=True)


def plain(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    top = bottom = torch.zeros(())
    for key, value in blocks(k, v, sizes):
        e = (q @ key.mT).exp()
        top, bottom = top + e @ value, bottom + e.sum(-1, keepdim=True)
    return top / bottom


def running(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    """With the running maximum, as flash attention does."""
    top, bottom, high = (
        torch.zeros_like(q),
        torch.zeros(*q.shape[:-1], 1),
        torch.full((*q.shape[:-1], 1), -1e9),
    )
    for key, value in blocks(k, v, sizes):
        scores = q @ key.mT
        new = torch.maximum(high, scores.amax(-1, keepdim=True))
        e, fade = (scores - new).exp(), (high - new).exp()
        top, bottom, high = top * fade + e @ value, bottom * fade + e.sum(-1, keepdim=True), new
    return top / bottom


def by_einsum(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    top = bottom = torch.zeros(())
    for key, value in blocks(k, v, sizes):
        e = torch.einsum("bhqd,bhkd->bhqk", q, key).exp()
        top = top + torch.einsum("bhqk,bhkd->bhqd", e, value)
        bottom = bottom + e.sum(-1)[..., None]
    return top / bottom


def keys_first(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    top = bottom = torch.zeros(())
    for key, value in blocks(k, v, sizes):
        e = (key @ q.mT).exp()  # [key, query]
        top, bottom = top + e.mT @ value, bottom + e.sum(-2).unsqueeze(-1)
    return top / bottom


WAYS: dict[str, Way] = {"plain": plain, "running": running, "einsum": by_einsum, "keys first": keys_first}


class Blocked(nn.Module):
    def __init__(self, way: Way, sizes: Sizes, rows: int, other: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed, self.beside, self.layer, self.head = (
            nn.Linear(5, 8),
            nn.Linear(5, 8),
            Attend(),
            nn.Linear(8, 2),
        )
        self.way, self.sizes, self.rows, self.other = way, sizes, rows, other

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.embed(x), self.beside(y)
        asking, asked = x[:, : self.rows], y if self.other else x
        parts = self.layer.q(asking) / 8**0.5, self.layer.k(asked), self.layer.v(asked)
        out = self.way(*(p.unflatten(-1, (2, 4)).transpose(1, 2) for p in parts), self.sizes)
        return self.head((asking + out.transpose(1, 2).flatten(2))[:, 0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("rows", "other"), [(5, False), (1, False), (5, True), (1, True)])
def test_cuts_change_nothing(way: str, rows: int, other: bool) -> None:
    x, y = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0)).unbind()
    want = fxplain.explain(Blocked(WAYS[way], (5,), rows, other).eval(), (x, y), target=0)
    one_by_one = (
        [] if way == "running" and rows == 1 and other else [(1, 1, 1, 1, 1)]
    )  # nothing tells the axes
    for sizes in ((4, 1), (1, 4), (2, 2, 1), *one_by_one):
        model = Blocked(WAYS[way], sizes, rows, other).eval()
        traced = fxplain.trace(model, (x, y))
        assert [a.keys.size for a in traced.attentions] == [5]
        found = traced.explain((x, y), target=0)
        for name, values in want.relevance.items():
            torch.testing.assert_close(found.relevance[name], values)


class Windows(nn.Module):
    """Windows of one token each, heads apart: what a token reads is itself, or its neighbour in `y`."""

    def __init__(self, way: Way, other: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed, self.layer, self.head = nn.Linear(5, 8), Attend(), nn.Linear(8, 2)
        self.way, self.other = way, other

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.embed(x), self.embed(y)
        parts = self.layer.q(x), self.layer.k(y if self.other else x), self.layer.v(y if self.other else x)
        windows = [p.reshape(-1, 1, 2, 4).transpose(1, 2) for p in parts]
        return self.head((x + self.way(*windows, (1,)).reshape(x.shape))[:, 0])


def softmaxed(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


@pytest.mark.parametrize("way", [plain, by_einsum, keys_first])
@pytest.mark.parametrize("other", [False, True])
def test_windows_of_one_token_are_windows(way: Way, other: bool) -> None:
    x, y = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0)).unbind()
    want, found = (fxplain.trace(Windows(each, other).eval(), (x, y)) for each in (softmaxed, way))
    (attention,) = found.attentions
    assert (attention.kind, attention.normaliser) == (want.attentions[0].kind, "softmax")
    for target in (0, 1):  # a map of ones adds to a token only where the gradient is positive
        mine, theirs = (each.explain((x, y), target=target) for each in (found, want))
        read = "y" if other else "x"
        torch.testing.assert_close(mine.matrix("x", read), theirs.matrix("x", read))
