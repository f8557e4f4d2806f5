"""Tokens chosen, dropped, merged and sent to experts: what depends on the data, in many spellings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxplain

BATCH, TOKENS, WIDTH, EXPERTS = 2, 6, 8, 3
Middle = Callable[["Between", Tensor, Tensor], Tensor]


class Between(nn.Module):
    """Attention, something in the middle, attention; the score reads the first token."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.gate, self.head = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.middle = middle

    def attend(self, layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = layer(x).unflatten(-1, (2, 12)).transpose(1, 2).chunk(3, -1)
        weights = (q @ k.mT).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights

    def forward(self, x: Tensor) -> Tensor:
        update, weights = self.attend(self.first, x)
        x = self.middle(self, x + update, weights)
        x = x + self.attend(self.second, x)[0]
        logits: Tensor = self.head(x[:, 0])
        return logits


def dense_experts(m: Between, x: Tensor, _: Tensor) -> Tensor:
    """The two best of three experts, all of them computed."""
    best, which = m.gate(x).topk(2, -1)
    weights = torch.zeros(*x.shape[:2], EXPERTS).scatter(-1, which, best.softmax(-1))
    return x + sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(m.experts))


def dispatched(m: Between, x: Tensor, _: Tensor) -> Tensor:
    """Mixtral's loop: where, index, index_add_."""
    flat = x.reshape(-1, WIDTH)
    best, which = m.gate(flat).topk(2, -1)
    best = best.softmax(-1)
    total = torch.zeros_like(flat)
    mask = functional.one_hot(which, EXPERTS).permute(2, 1, 0)
    for i, expert in enumerate(m.experts):
        slot, token = torch.where(mask[i])
        total.index_add_(0, token, expert(flat[token]) * best[token, slot, None])
    return x + total.view_as(x)


def dispatched_by_mask(m: Between, x: Tensor, _: Tensor) -> Tensor:
    """Boolean rows read and written."""
    best, which = m.gate(x).topk(2, -1)
    weights = torch.zeros(*x.shape[:2], EXPERTS).scatter(-1, which, best.softmax(-1))
    total = torch.zeros_like(x)
    for i, expert in enumerate(m.experts):
        mine = weights[..., i] > 0
        if mine.any():
            total[mine] += expert(x[mine]) * weights[mine][:, i, None]
    return x + total


def dispatched_sorted(m: Between, x: Tensor, _: Tensor) -> Tensor:
    """Tokens sorted by expert, split by counts, put back by the inverse order."""
    flat = x.reshape(-1, WIDTH)
    best, which = m.gate(flat).topk(2, -1)
    order = which.flatten().argsort(stable=True)
    parts = flat[order // 2].split(torch.bincount(which.flatten(), minlength=EXPERTS).tolist())
    done = torch.cat([expert(part) for expert, part in zip(m.experts, parts, strict=True)])
    back = torch.empty_like(done)
    back[order] = done
    out = (back.view(-1, 2, WIDTH) * best.softmax(-1)[..., None]).sum(1)
    return x + out.view_as(x)


def dispatched_scattered(m: Between, x: Tensor, _: Tensor) -> Tensor:
    """scatter_add of weighted copies."""
    flat = x.reshape(-1, WIDTH)
    best, which = m.gate(flat).topk(2, -1)
    total = torch.zeros_like(flat)
    for i, expert in enumerate(m.experts):
        token, slot = (which == i).nonzero(as_tuple=True)
        part = expert(flat[token]) * best.softmax(-1)[token, slot].unsqueeze(-1)
        total = total.scatter_add(0, token[:, None].expand(-1, WIDTH), part)
    return x + total.view_as(x)


def kept_by_gather(m: Between, x: Tensor, weights: Tensor) -> Tensor:
    """EViT: the first token, and the three it looks at the most."""
    order = weights.mean(1)[:, 0, 1:].topk(3, dim=-1).indices + 1
    return torch.cat([x[:, :1], x.gather(1, order[..., None].expand(-1, -1, WIDTH))], 1)


def kept_by_index(m: Between, x: Tensor, weights: Tensor) -> Tensor:
    order = weights.mean(1)[:, 0, 1:].topk(3, dim=-1).indices + 1
    return torch.cat([x[:, :1], x[torch.arange(len(x))[:, None], order]], 1)


def kept_by_loop(m: Between, x: Tensor, weights: Tensor) -> Tensor:
    order = weights.mean(1)[:, 0, 1:].topk(3, dim=-1).indices + 1
    return torch.stack(
        [torch.cat([one[:1], one.index_select(0, at)]) for one, at in zip(x, order, strict=True)]
    )


def kept_by_sort(m: Between, x: Tensor, weights: Tensor) -> Tensor:
    order = weights.mean(1)[:, 0, 1:].argsort(-1, descending=True)[:, :3] + 1
    return torch.cat([x[:, :1], torch.take_along_dim(x, order[..., None], 1)], 1)


GROUPS: tuple[tuple[Middle, ...], ...] = (
    (dense_experts, dispatched, dispatched_by_mask, dispatched_sorted, dispatched_scattered),
    (kept_by_gather, kept_by_index, kept_by_loop, kept_by_sort),
)


def tokens() -> Tensor:
    return torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(4))


def built(middle: Middle) -> Between:
    torch.manual_seed(0)
    return Between(middle).eval()


def explained(middle: Middle) -> tuple[Any, Any]:
    traced = fxplain.trace(built(middle), tokens())
    assert not [entry for entry in traced.census if entry.role == "unknown"]
    return traced, traced.explain(tokens(), target=1)


@pytest.mark.parametrize(
    ("first", "other"), [(group[0], other) for group in GROUPS for other in group], ids=lambda f: f.__name__
)
def test_dispatch_is_one_thing_however_spelled(first: Middle, other: Middle) -> None:
    torch.testing.assert_close(built(first)(tokens()), built(other)(tokens()))
    one, wanted = explained(first)
    traced, result = explained(other)
    assert [(a.kind, a.queries.tokens, a.keys.size, a.heads) for a in traced.attentions] == [
        (a.kind, a.queries.tokens, a.keys.size, a.heads) for a in one.attentions
    ]
    torch.testing.assert_close(result.relevance["x"], wanted.relevance["x"], rtol=1e-4, atol=1e-7)
    assert float(result.relevance["x"].sum()) > 0


def merged(m: Between, x: Tensor, _: Tensor) -> Tensor:
    """ToMe: each odd token joins the even one that is most like it, for the two best pairs."""
    metric = functional.normalize(x, dim=-1)
    even, odd = x[:, ::2], x[:, 1::2]
    best, which = (metric[:, 1::2] @ metric[:, ::2].mT).max(-1)
    order = best.argsort(-1, descending=True)[..., None]
    gone, stays = order[:, :2], order[:, 2:]
    to = which[..., None].gather(1, gone).expand(-1, -1, WIDTH)
    source = odd.gather(1, gone.expand(-1, -1, WIDTH))
    even = even.scatter_reduce(1, to, source, reduce="mean")
    return torch.cat([even, odd.gather(1, stays.expand(-1, -1, WIDTH))], 1)


def merged_in_place(m: Between, x: Tensor, _: Tensor) -> Tensor:
    """The same with scatter_add_ and counts, into a copy."""
    metric = functional.normalize(x, dim=-1)
    even, odd = x[:, ::2].clone(), x[:, 1::2]
    best, which = (metric[:, 1::2] @ metric[:, ::2].mT).max(-1)
    order = best.argsort(-1, descending=True)[..., None]
    gone, stays = order[:, :2], order[:, 2:]
    to = which[..., None].gather(1, gone)
    count = torch.ones(len(x), 3, 1).scatter_add_(1, to, torch.ones(len(x), 2, 1))
    even.scatter_add_(1, to.expand(-1, -1, WIDTH), odd.gather(1, gone.expand(-1, -1, WIDTH)))
    return torch.cat([even / count, odd.gather(1, stays.expand(-1, -1, WIDTH))], 1)


@pytest.mark.parametrize("middle", [merged, merged_in_place], ids=lambda f: f.__name__)
def test_merged_tokens_take_in_those_that_join_them(middle: Middle) -> None:
    torch.testing.assert_close(built(merged)(tokens()), built(middle)(tokens()))
    traced, result = explained(middle)
    assert [(a.kind, a.queries.size, a.heads) for a in traced.attentions] == [("self", 6, 2), ("self", 5, 2)]
    assert len(traced.mixings) == 1  # four tokens are left of each sample, not the same
    _, wanted = explained(merged)
    torch.testing.assert_close(result.relevance["x"], wanted.relevance["x"], rtol=1e-4, atol=1e-7)


def fused_rest(m: Between, x: Tensor, weights: Tensor) -> Tensor:
    """EViT: the tokens that are dropped become one, weighed by what the first token gives them."""
    given = weights.mean(1)[:, 0, 1:]
    order = given.argsort(-1, descending=True) + 1
    rest = order[:, 3:]
    share = given.gather(1, rest - 1)[..., None]
    one = (x.gather(1, rest[..., None].expand(-1, -1, WIDTH)) * share).sum(1, keepdim=True)
    kept = x.gather(1, order[:, :3, None].expand(-1, -1, WIDTH))
    return torch.cat([x[:, :1], kept, one], 1)


def slots(m: Between, x: Tensor, _: Tensor) -> Tensor:
    """Soft experts: tokens go to slots by a softmax over tokens, and come back by one over slots."""
    scores = m.gate(x)
    given = scores.softmax(1).mT @ x
    return x + scores.softmax(-1) @ torch.stack(
        [f(t) for f, t in zip(m.experts, given.unbind(1), strict=True)], 1
    )


def learned(m: Between, x: Tensor, _: Tensor) -> Tensor:
    """TokenLearner: three maps over the tokens by a sigmoid, each a weighted mean, before the others."""
    chosen = torch.einsum("bte,btc->bec", m.gate(x).sigmoid(), x) / TOKENS
    return torch.cat([x[:, :1], chosen], 1)


def halting(m: Between, x: Tensor, _: Tensor) -> Tensor:
    """Adaptive computation: steps until every token has had enough; their states are averaged by shares."""
    left, out, steps = torch.ones(*x.shape[:2], 1), torch.zeros_like(x), 0
    while bool((left > 0.05).any()) and steps < 4:
        x = m.experts[0](x).tanh()
        share = torch.minimum(left, m.gate(x)[..., :1].sigmoid())
        out, left, steps = out + share * x, left - share, steps + 1
    return out


@pytest.mark.parametrize(
    ("middle", "sizes"),
    [
        (fused_rest, [("self", 6, 6), ("encoder_decoder", 1, 3), ("self", 6, 6)]),
        (slots, None),
        (learned, None),
        (halting, [("self", 6, 6), ("self", 6, 6)]),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
def test_other_counts_of_tokens(middle: Middle, sizes: Any) -> None:
    traced, result = explained(middle)
    found = [(a.kind, a.queries.size, a.keys.size) for a in traced.attentions]
    assert sizes is None or found == sizes, found
    values = result.relevance["x"]
    assert bool(torch.isfinite(values).all())
    assert float(values.sum()) > 0
    for sample in range(BATCH if middle is not fused_rest else 0):  # its keys are other tokens in each sample
        alone = fxplain.explain(built(middle), tokens()[sample : sample + 1], target=1)
        torch.testing.assert_close(alone.relevance["x"][0], values[sample], rtol=1e-4, atol=1e-7)


class Chosen(nn.Module):
    """Tokens by what they are, each kind with a layer of its own, side by side, and a blank
    between them; there may be none of a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.other = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        large = x[:, 0] > 100.0
        tokens = self.embed(x)
        tokens = torch.cat([self.one(tokens[large]), x.new_zeros(1, 8), self.other(tokens[~large])])[None]
        out: Tensor = self.head((tokens + self.attend(tokens, tokens, tokens)[0])[:, 0])
        return out


def test_a_part_without_tokens_adds_none() -> None:
    torch.manual_seed(0)
    traced = fxplain.trace(Chosen().eval(), torch.randn(4, 5))
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size, attention.keys.size) == ("self", 4, 4)
    assert not [entry for entry in traced.census if entry.role == "unknown"]
