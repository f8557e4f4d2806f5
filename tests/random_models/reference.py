"""Eqs. 5 to 11 of Chefer et al. (ICCV 2021) over a dense matrix, for a model whose tokens are known by
construction.

The forward pass is written anew, in plain PyTorch over the module's weights: every attention is softmax(q
kᵀ) v over whole streams (a window is a mask), and every map is kept with its row and column tokens. `R`
is [token, token] for each sample, over the tokens of all streams and all that the model makes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from random_models.build import Attention, Block, Model, rotated
from random_models.plan import WIDTH, Layer


@dataclass(frozen=True)
class Map:
    """One attention [batch, heads, rows, columns]; those of one `group` read the state before the group."""

    weights: Tensor
    rows: list[int]
    columns: list[int]
    group: int
    pools: bool = False  # a new token that counts as those it pools


@dataclass(frozen=True)
class Wanted:
    """What fxplain should say: the score, kinds, and one relevance [batch, tokens] for each input.

    ``kinds`` has every answer that is right: a map that the score does not depend on may be listed or not.
    """

    score: Tensor
    kinds: list[list[str]]
    relevance: list[Tensor]


class Reference:
    """One forward pass of `model` with all that eq. 5 needs."""

    def __init__(self, model: Model, inputs: tuple[Tensor, ...]) -> None:
        self.model, self.plan = model, model.plan
        self.maps: list[Map] = []
        self.group, self.count = 0, 0
        self.tokens = [self._new(s.size + s.register) for s in self.plan.streams]
        self.inputs = [t[s.register :] for t, s in zip(self.tokens, self.plan.streams, strict=True)]
        self.pads = [
            x != 0 if s.data == "ids" else None for x, s in zip(inputs, self.plan.streams, strict=True)
        ]
        self.x = [self._embedded(i, data) for i, data in enumerate(inputs)]
        blocks: Any = model.blocks
        for layer, block in zip(self.plan.layers, blocks, strict=True):
            self._layer(layer, block)
        self.pooled, self.read = self._pool()
        self.output = model.head(self.pooled)

    def _new(self, count: int) -> list[int]:
        self.count += count
        return list(range(self.count - count, self.count))

    def _embedded(self, i: int, data: Tensor) -> Tensor:
        source: Any = self.model.sources[i]
        stream = self.plan.streams[i]
        if stream.data == "ids":
            x = source.embed.weight[data]
        elif stream.data == "features":
            x = (data if self.plan.batch_first else data.transpose(0, 1)) @ source.embed.weight.T
            x = x + source.embed.bias
        else:
            x = F.conv2d(data, source.embed.weight, source.embed.bias, 2).flatten(2).transpose(1, 2)
        if stream.register:
            x = torch.cat([source.register.repeat(len(x), 1, 1), x], 1)
        return x + source.positions if stream.positions else x

    def attend(
        self, at: Attention, a: Tensor, b: Tensor, who: tuple[list[int], list[int]], ok: Tensor
    ) -> Tensor:
        """Plain attention; `ok` [batch or 1, rows, columns] says which keys a query may see."""
        s, size = at.spelling, WIDTH // at.spelling.heads
        q = at.query(a).view(len(a), -1, s.heads, size).permute(0, 2, 1, 3)
        k, v = (f(b).view(len(b), -1, s.key_heads, size).permute(0, 2, 1, 3) for f in (at.key, at.value))
        if s.extra == "rotary":
            q, k = rotated(q), rotated(k)
        same = [h * s.key_heads // s.heads for h in range(s.heads)]  # the key head of each head
        k, v = k[:, same], v[:, same]
        scores = torch.matmul(q, k.transpose(2, 3)) / size**0.5
        if s.extra == "bias":
            scores = scores + at.bias[:, : q.shape[2], : k.shape[2]]
        e = torch.exp(scores) * ok[:, None]
        total = e.sum(-1, keepdim=True)
        if s.extra == "sink":
            total = total + at.sink.exp()[:, None, None]
        weights = e / total
        if s.extra == "talking":
            weights = torch.stack(
                [
                    torch.stack([at.talk[g, h] * weights[:, h] for h in range(s.heads)]).sum(0)
                    for g in range(s.heads)
                ],
                1,
            )
        self.maps.append(Map(weights, *who, self.group))
        return at.out(torch.matmul(weights, v).permute(0, 2, 1, 3).reshape(len(a), -1, WIDTH))

    def _layer(self, layer: Layer, block: Block) -> None:
        self.group += 1
        i, j = layer.stream, (layer.stream + 1) % len(self.x)
        pre = block.norm if layer.norm == "pre" else (lambda x: x)
        if layer.kind == "latents":
            old, before = self.x[i], self.tokens[i]
            self.tokens[i], self.pads[i] = self._new(len(block.latents)), None
            self.x[i] = block.latents.repeat(len(old), 1, 1)
            made = {i: self._cross(block.there, pre(self.x[i]), pre(old), (self.tokens[i], before))}
        elif layer.kind in ("self", "window", "shifted_window"):
            y = pre(self.x[i])
            made = {i: self.attend(block.there, y, y, (self.tokens[i], self.tokens[i]), self._allowed(layer))}
        elif layer.kind == "slice":
            y, t = pre(self.x[i]), self.tokens[i]
            first = self._cross(block.there, y[:, :1], y, (t[:1], t))
            made = {i: torch.cat([first, torch.zeros_like(y[:, 1:])], 1)}
        elif layer.kind == "halves":
            y, t = pre(self.x[i]), self.tokens[i]
            m = (len(t) + 1) // 2
            left = self._cross(block.there, y[:, :m], y[:, m:], (t[:m], t[m:]))
            right = self._cross(block.back, y[:, m:], y[:, :m], (t[m:], t[:m]))
            made = {i: torch.cat([left, right], 1)}
        elif layer.kind == "joint":
            t, y = self.tokens[i] + self.tokens[j], pre(torch.cat([self.x[i], self.x[j]], 1))
            y = self._cross(block.there, y, y, (t, t))
            made = {i: y[:, : len(self.tokens[i])], j: y[:, len(self.tokens[i]) :]}
        else:
            a, b = pre(self.x[i]), pre(self.x[j])
            made = {i: self._cross(block.there, a, b, (self.tokens[i], self.tokens[j]))}
            if layer.kind == "parallel":
                made[j] = self._cross(block.back, b, a, (self.tokens[j], self.tokens[i]))
        for number, change in made.items():
            self.x[number] = self._add(layer, block, self.x[number], change)
        if layer.kind == "sequential":
            self.group += 1
            change = self._cross(block.back, pre(self.x[j]), pre(self.x[i]), (self.tokens[j], self.tokens[i]))
            self.x[j] = self._add(layer, block, self.x[j], change)

    def _cross(self, at: Attention, a: Tensor, b: Tensor, who: tuple[list[int], list[int]]) -> Tensor:
        return self.attend(at, a, b, who, torch.ones(1, a.shape[1], b.shape[1], dtype=torch.bool))

    def _allowed(self, layer: Layer) -> Tensor:
        n, mask, pad = len(self.tokens[layer.stream]), layer.spelling.mask, self.pads[layer.stream]
        place = torch.arange(n)
        if layer.kind == "self":
            if mask in ("causal", "causal_additive"):
                return (place[:, None] >= place)[None]
            if mask == "padding" and pad is not None:
                first = torch.ones(len(pad), n - pad.shape[1], dtype=torch.bool)
                return torch.cat([first, pad], 1)[:, None].repeat(1, n, 1)
        elif n % 2 == 0:
            if layer.kind == "shifted_window":
                place = (place - 1) % n
            return (place[:, None] // (n // 2) == place // (n // 2))[None]
        return torch.ones(1, n, n, dtype=torch.bool)

    def _add(self, layer: Layer, block: Block, x: Tensor, change: Tensor) -> Tensor:
        y, after = x + change, block.after
        if layer.norm == "post" and layer.after != "beside":
            y = block.norm(y)
        if layer.after == "none":
            return y
        z = x if layer.after == "beside" else y
        if layer.after in ("mlp", "beside"):
            return y + after.two(F.gelu(after.one(z)))
        if layer.after == "gated":
            h = after.one(z)
            return y + h * torch.sigmoid(h) * after.two(z)
        gates = after.router(z).softmax(-1)
        if layer.after == "routed_experts":
            gates = gates * F.one_hot(gates.argmax(-1), 2)
        return y + gates[..., :1] * after.one(z) + gates[..., 1:] * after.two(z)

    def _pool(self) -> tuple[Tensor, list[int]]:
        x, t, pool = self.x[0], self.tokens[0], self.plan.pool
        if pool == "tokens":
            return x, t[1:2]
        if pool == "class":
            return x[:, 0], t[:1]
        if pool in ("last", "last_by_list"):
            return x[:, len(t) - 1], t[-1:]
        if pool == "attention":
            weights = self.model.score(x)[..., 0].softmax(-1)[:, None, None]
            new = self._new(1)
            self.group += 1
            self.maps.append(Map(weights, new, t, self.group, True))
            return (weights[:, 0] @ x)[:, 0], new
        if pool == "max":
            share = (x == x.amax(1, keepdim=True)).to(x.dtype)
            share = share / share.sum(1, keepdim=True)  # equal maxima share alike, as in PyTorch's gradient
        else:
            share = torch.ones_like(x)
            if pool == "masked_mean":
                share[:, -1] = 0
            share = share / share.sum(1, keepdim=True)
        self.given = share * x  # what each token gives to the pooled one
        return self.given.sum(1), self._new(1)


def wanted(model: Model, inputs: tuple[Tensor, ...], target: int) -> Wanted:
    """The equations for class `target` (of token 1, where each token has logits)."""
    run = Reference(model, inputs)
    score = run.output[:, 1, target] if run.plan.pool == "tokens" else run.output[:, target]
    wrt = [m.weights for m in run.maps] + [run.pooled]
    *slopes, pooled_slope = torch.autograd.grad(score.sum(), wrt, allow_unused=True)
    with torch.no_grad():
        averaged = [
            torch.zeros_like(m.weights[:, 0]) if g is None else (g * m.weights).clamp(min=0).mean(1)
            for m, g in zip(run.maps, slopes, strict=True)
        ]
        used = [g is not None for g in slopes]
        rows = []
        for sample in range(run.plan.batch):
            R = relevancy(run.maps, [a[sample] for a in averaged], run.count)  # noqa: N806
            if hasattr(run, "given"):
                weights = (pooled_slope[sample] * run.given[sample]).sum(-1).clamp(min=0)
                if weights.sum() == 0:
                    weights = torch.ones_like(weights)
                row = weights / weights.sum() @ R[run.tokens[0]]
            else:
                row = R[run.read[0]].clone()
                row[run.read[0]] = 0  # the own entry is set aside
            rows.append(row)
        table = torch.stack(rows)
    return Wanted(score.detach(), _listed(run.maps, used), [table[:, t] for t in run.inputs])


def _listed(maps: list[Map], used: list[bool]) -> list[list[str]]:
    choices = itertools.product(*([True] if live else [True, False] for live in used))
    return [sorted(kinds(list(itertools.compress(maps, choice)))) for choice in choices]


def own(m: Map) -> bool:
    """Whether this is self attention: the keys hold the queries, or the query is made of the keys alone."""
    return m.pools or set(m.rows) <= set(m.columns)


def kinds(maps: list[Map]) -> list[str]:
    """self where the keys hold the queries; co where another map goes back; else encoder_decoder."""
    back = {(r, c) for m in maps for r in m.rows for c in m.columns if not own(m)}
    made = []
    for m in maps:
        if own(m):
            made.append("self")
        else:
            made.append("co" if any((c, r) in back for r in m.rows for c in m.columns) else "encoder_decoder")
    return made


def relevancy(maps: list[Map], averaged: list[Tensor], count: int) -> Tensor:
    """Eqs. 6 to 11 for one sample: R [token, token] after all maps in order."""
    R = torch.eye(count, dtype=torch.float64)  # noqa: N806
    for group in sorted({m.group for m in maps}):
        old = R.clone()
        for m, A in zip(maps, averaged, strict=True):  # noqa: N806
            if m.group != group:
                continue
            q, k = torch.tensor(m.rows), torch.tensor(m.columns)
            change = A @ old[k]  # eqs. 6, 7 and 11
            if not own(m):
                change[:, k] = normalised(old[q][:, q]).T @ A @ normalised(old[k][:, k])  # eq. 10
            R[q] += change
    return R


def normalised(R: Tensor) -> Tensor:  # noqa: N803
    """Eqs. 8 and 9; a row of zeros stays one."""
    one = torch.eye(len(R), dtype=R.dtype)
    sums = (R - one).sum(-1, keepdim=True)
    return (R - one) / torch.where(sums > 0, sums, 1) + one
