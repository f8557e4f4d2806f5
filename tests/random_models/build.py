"""The module of a plan: attention is spelled as the plan says, and nothing here is kept for the reference
but weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from random_models.plan import WIDTH, Layer, Plan, Spelling, Stream

LATENTS = 2
CLASSES = 3


class Attention(nn.Module):
    """`a` [batch, rows, width] attends to `b` [batch, columns, width]."""

    def __init__(self, spelling: Spelling, room: int) -> None:
        super().__init__()
        self.spelling = spelling
        narrow = WIDTH // spelling.heads * spelling.key_heads
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, narrow), nn.Linear(WIDTH, narrow)
        self.bias = nn.Parameter(torch.randn(spelling.heads, room, room))
        self.talk = nn.Parameter(torch.randn(spelling.heads, spelling.heads))
        self.sink = nn.Parameter(torch.randn(spelling.heads))

    def forward(self, a: Tensor, b: Tensor, allowed: Tensor | None = None) -> Tensor:
        s = self.spelling
        if s.how == "mha":
            return self._functional(a, b, allowed)
        size = WIDTH // s.heads
        q = self.query(a).unflatten(-1, (s.heads, size)).transpose(1, 2)
        k = self.key(b).unflatten(-1, (s.key_heads, size)).transpose(1, 2)
        v = self.value(b).unflatten(-1, (s.key_heads, size)).transpose(1, 2)
        if s.extra == "rotary":
            q, k = rotated(q), rotated(k)
        k, v = (x.repeat_interleave(s.heads // s.key_heads, 1) for x in (k, v))
        mixed = self._fused(q, k, v, allowed) if s.how == "sdpa" else self._written(q, k, v, allowed)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _functional(self, a: Tensor, b: Tensor, allowed: Tensor | None) -> Tensor:
        heads = self.spelling.heads
        if allowed is not None:
            allowed = ~allowed.expand(len(a), -1, -1).repeat_interleave(heads, 0)
        made, _ = F.multi_head_attention_forward(
            a.transpose(0, 1), b.transpose(0, 1), b.transpose(0, 1), WIDTH, heads,
            None, torch.cat([x.bias for x in (self.query, self.key, self.value)]), None, None, False, 0.0,
            self.out.weight, self.out.bias, training=False, need_weights=False, attn_mask=allowed,
            use_separate_proj_weight=True, q_proj_weight=self.query.weight, k_proj_weight=self.key.weight,
            v_proj_weight=self.value.weight,
        )  # fmt: skip
        return made.transpose(0, 1)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        mask = None if allowed is None else allowed[:, None]
        if self.spelling.extra == "bias":
            bias = self.bias[:, : q.shape[2], : k.shape[2]]
            mask = bias[None] if mask is None else bias.masked_fill(~mask, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, mask)

    def _scores(self, q: Tensor, k: Tensor, allowed: Tensor | None) -> Tensor:
        how, scale = self.spelling.how, q.shape[-1] ** -0.5
        if how == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) * scale
        elif how == "baddbmm":
            flat = q.flatten(0, 1), k.flatten(0, 1).mT
            empty = q.new_zeros(len(flat[0]), q.shape[2], k.shape[2])
            scores = torch.baddbmm(empty, *flat, beta=0, alpha=scale).unflatten(0, q.shape[:2])
        elif how == "transposed":
            scores = ((k * scale) @ q.mT).mT
        else:
            scores = q @ k.mT * scale
        if self.spelling.extra == "bias":
            scores = scores + self.bias[:, : q.shape[2], : k.shape[2]]
        if allowed is not None and self.spelling.mask == "causal_additive":
            scores = scores + torch.zeros_like(scores).masked_fill(~allowed[:, None], -1e9)
        elif allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        return scores

    def _written(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        s, scores = self.spelling, self._scores(q, k, allowed)
        if s.extra == "sink":
            sink = self.sink[:, None, None].expand(len(q), -1, q.shape[2], 1)
            return torch.cat([scores, sink], -1).softmax(-1)[..., :-1] @ v
        if s.how == "divided_late":
            weights = scores.exp()
            return weights @ v / weights.sum(-1, keepdim=True)
        if s.how == "transposed":
            weights = scores.mT.softmax(-2).mT
        elif s.how == "max_subtracted":
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            weights = weights / weights.sum(-1, keepdim=True)
        else:
            weights = scores.softmax(-1, dtype=torch.float64 if s.how == "softmax_in_float64" else None).to(
                v.dtype
            )
        if s.extra == "talking":
            weights = torch.einsum("gh,bhij->bgij", self.talk, weights)
        if s.how == "transposed":
            return (v.mT @ weights.mT).mT
        return torch.einsum("bhij,bhjd->bhid", weights, v) if s.how == "einsum" else weights @ v


def rotated(x: Tensor) -> Tensor:
    """Rotary positions over the last two axes [places, features]."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] / torch.arange(1, half + 1, dtype=x.dtype)
    left, right = x.chunk(2, -1)
    return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], -1)


class After(nn.Module):
    """What follows an attention, token by token."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("mlp", "beside"):
            return self.two(F.gelu(self.one(x)))
        if self.kind == "gated":
            return F.silu(self.one(x)) * self.two(x)
        gates = self.router(x).softmax(-1)
        if self.kind == "dense_experts":
            made = torch.stack([self.one(x), self.two(x)], -2)
            return (made * gates[..., None]).sum(-2)
        flat, gates = x.flatten(0, 1), gates.flatten(0, 1)
        best, made = gates.argmax(-1), torch.zeros_like(flat)
        for number, expert in enumerate((self.one, self.two)):
            (rows,) = torch.where(best == number)
            made = made.index_add(0, rows, expert(flat[rows]) * gates[rows, number, None])
        return made.view_as(x)


class Block(nn.Module):
    """The weights of one layer: an attention for each direction, norms and what follows."""

    def __init__(self, layer: Layer, room: int) -> None:
        super().__init__()
        self.there, self.back = Attention(layer.spelling, room), Attention(layer.spelling, room)
        self.norm, self.after = nn.LayerNorm(WIDTH), After(layer.after)
        self.latents = nn.Parameter(torch.randn(LATENTS, WIDTH))


class Source(nn.Module):
    """Tokens of one input [batch, tokens, width]."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        makers = {"ids": nn.Embedding(12, WIDTH), "features": nn.Linear(5, WIDTH)}
        self.embed = makers.get(stream.data) or nn.Conv2d(3, WIDTH, 2, stride=2)
        self.register = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(stream.size + stream.register, WIDTH))

    def forward(self, data: Tensor) -> Tensor:
        x = self.embed(data)
        if self.stream.data == "picture":
            x = x.flatten(2).mT
        if self.stream.register:
            x = torch.cat([self.register.expand(len(x), -1, -1), x], 1)
        return x + self.positions if self.stream.positions else x


class Model(nn.Module):
    """The model of a plan; its inputs are called first, second and third."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        room = sum(s.size + s.register for s in plan.streams)
        self.sources = nn.ModuleList(Source(s) for s in plan.streams)
        self.blocks = nn.ModuleList()
        for layer in plan.layers:
            block = Block(layer, room)
            if layer.shared and self.blocks and plan.layers[len(self.blocks) - 1].spelling == layer.spelling:
                earlier: Any = self.blocks[-1]
                block.there = earlier.there
            self.blocks.append(block)
        self.score, self.head = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, CLASSES)

    def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Tensor:
        given = [x for x in (first, second, third) if x is not None]
        pads = [x != 0 if s.data == "ids" else None for x, s in zip(given, self.plan.streams, strict=True)]
        if not self.plan.batch_first:
            data = [s.data for s in self.plan.streams]
            given = [x.transpose(0, 1) if d == "features" else x for x, d in zip(given, data, strict=True)]
        x = [source(data) for source, data in zip(self.sources, given, strict=True)]
        blocks: Any = self.blocks
        for layer, block in zip(self.plan.layers, blocks, strict=True):
            i = layer.stream
            x = self._step(layer, block, x, self._allowed(layer, x[i], pads[i]))
            if layer.kind == "latents":
                pads[i] = None
        return self._read(x[0])

    def _allowed(self, layer: Layer, x: Tensor, pad: Tensor | None) -> Tensor | None:
        mask, n = layer.spelling.mask, x.shape[1]
        if layer.kind != "self" or mask == "none" or (mask == "padding" and pad is None):
            return None
        if mask == "padding":
            assert pad is not None
            return F.pad(pad, (n - pad.shape[1], 0), value=True)[:, None].expand(-1, n, -1)
        return torch.ones(1, n, n, dtype=torch.bool).tril()

    def _step(self, layer: Layer, block: Block, x: list[Tensor], allowed: Tensor | None) -> list[Tensor]:
        i, j, x = layer.stream, (layer.stream + 1) % len(x), list(x)
        n = x[i].shape[1]
        pre = block.norm if layer.norm == "pre" else nn.Identity()
        if layer.kind == "latents":
            old, x[i] = x[i], block.latents.expand(len(x[i]), -1, -1)
            made = {i: block.there(pre(x[i]), pre(old))}
        elif layer.kind == "self":
            made = {i: block.there(pre(x[i]), pre(x[i]), allowed)}
        elif layer.kind in ("window", "shifted_window"):
            made = {i: self._windows(layer, block, pre(x[i]))}
        elif layer.kind == "slice":
            made = {i: F.pad(block.there(pre(x[i][:, :1]), pre(x[i])), (0, 0, 0, n - 1))}
        elif layer.kind == "halves":
            left, right = pre(x[i]).tensor_split(2, 1)
            made = {i: torch.cat([block.there(left, right), block.back(right, left)], 1)}
        elif layer.kind == "joint":
            whole = pre(torch.cat([x[i], x[j]], 1))
            one, two = block.there(whole, whole).split([n, x[j].shape[1]], 1)
            made = {i: one, j: two}
        else:
            made = {i: block.there(pre(x[i]), pre(x[j]))}
            if layer.kind == "parallel":
                made[j] = block.back(pre(x[j]), pre(x[i]))
        for number, change in made.items():
            x[number] = self._add(layer, block, x[number], change)
        if layer.kind == "sequential":
            x[j] = self._add(layer, block, x[j], block.back(pre(x[j]), pre(x[i])))
        return x

    def _windows(self, layer: Layer, block: Block, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            return block.there(x, x)
        shift = layer.kind == "shifted_window"
        y = (x.roll(-1, 1) if shift else x).unflatten(1, (2, -1)).flatten(0, 1)
        y = block.there(y, y).unflatten(0, (-1, 2)).flatten(1, 2)
        return y.roll(1, 1) if shift else y

    def _add(self, layer: Layer, block: Block, x: Tensor, change: Tensor) -> Tensor:
        y = x + change
        if layer.after == "beside":
            return y + block.after(x)
        if layer.norm == "post":
            y = block.norm(y)
        return y if layer.after == "none" else y + block.after(y)

    def _read(self, x: Tensor) -> Tensor:
        pool = self.plan.pool
        if pool == "tokens":
            return self.head(x)
        if pool == "last_by_list":
            return self.head(x[:, [-1]])[:, 0]
        if pool == "attention":
            return self.head((self.score(x).softmax(1) * x).sum(1))
        if pool == "masked_mean":
            keep = torch.ones(x.shape[1], 1, dtype=x.dtype)
            keep[-1] = 0
            return self.head((x * keep).sum(1) / keep.sum())
        taken = {"class": lambda: x[:, 0], "last": lambda: x[:, -1], "mean": lambda: x.mean(1)}
        return self.head(taken[pool]() if pool in taken else x.amax(1))


def made(plan: Plan) -> tuple[Model, tuple[Tensor, ...]]:
    """Model and inputs in float64, the same for the same plan."""
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        model = Model(plan).double().eval()
        inputs = tuple(_data(stream, plan) for stream in plan.streams)
    return model, inputs


def _data(stream: Stream, plan: Plan) -> Tensor:
    if stream.data == "ids":
        ids = torch.randint(1, 12, (plan.batch, stream.size))
        ids[0, -1] = 0
        return ids
    if stream.data == "picture":
        return torch.randn(plan.batch, 3, 4, stream.size, dtype=torch.float64)
    x = torch.randn(plan.batch, stream.size, 5, dtype=torch.float64)
    return x if plan.batch_first else x.transpose(0, 1).contiguous()
