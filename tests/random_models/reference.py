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

from random_models.build import Block, Model
from random_models.equations import Map, averaged, kinds, relevancy
from random_models.plan import LIBRARY, WIDTH, Layer, Spelling
from random_models.spelled import Attention, rotated


@dataclass(frozen=True)
class Wanted:
    """What fxplain should say: the score, kinds, and one relevance [batch, tokens] for each input.

    ``kinds`` has every answer that is right: a map that the score does not depend on may be listed or not.
    """

    score: Tensor
    kinds: list[list[str]]
    relevance: list[Tensor]
    maps: list[Map]
    used: list[bool]
    """Of each map, whether the score depends on it."""


class Reference:
    """One forward pass of `model` with all that eq. 5 needs."""

    def __init__(self, model: Model, inputs: tuple[Tensor, ...]) -> None:
        self.model, self.plan = model, model.plan
        self.maps: list[Map] = []
        self.made: dict[int, Tensor] = {}
        """Number of a merging map -> the tokens that it makes."""
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
        if s.extra == "normed":
            q, k = (x / x.pow(2).sum(-1, keepdim=True).sqrt() for x in (q, k))
        same = [h * s.key_heads // s.heads for h in range(s.heads)]  # the key head of each head
        if s.extra == "bias_kv":
            k = torch.cat([k, at.bias_k.view(1, s.key_heads, 1, size).repeat(len(k), 1, 1, 1)], 2)
            v = torch.cat([v, at.bias_v.view(1, s.key_heads, 1, size).repeat(len(v), 1, 1, 1)], 2)
            who, ok = (who[0], who[1] + self._new(1)), F.pad(ok, (0, 1), value=True)
        k, v = k[:, same], v[:, same]
        e = torch.exp(self._changed(at, a, b, self._scores(at, q, k))) * ok[:, None]
        total = e.sum(-1, keepdim=True)
        if s.extra == "sink":
            total = total + at.sink.exp()[:, None, None]
        weights = e / (total + 1 if s.extra == "zero" else total)
        if s.extra == "talking":
            weights = torch.stack(
                [
                    torch.stack([at.talk[g, h] * weights[:, h] for h in range(s.heads)]).sum(0)
                    for g in range(s.heads)
                ],
                1,
            )
        return at.out(
            torch.matmul(self._kept(s, weights, who), v).permute(0, 2, 1, 3).reshape(len(a), -1, WIDTH)
        )

    def _kept(self, s: Spelling, weights: Tensor, who: tuple[list[int], list[int]]) -> Tensor:
        """The map, or several of which each has some heads or some queries, as the model makes them."""
        if s.how == "heads_in_a_loop":
            parts = [part.clone() for part in weights.split(1, 1)]
            self.maps += [Map(own, *who, self.group, of=s.heads) for own in parts]
            return torch.cat(parts, 1)
        if s.how == "queries_in_parts" and len(who[0]) > 1:
            middle = len(who[0]) // 2
            parts = [part.clone() for part in weights.split([middle, len(who[0]) - middle], 2)]
            rows = who[0][:middle], who[0][middle:]
            self.maps += [Map(own, r, who[1], self.group) for own, r in zip(parts, rows, strict=True)]
            return torch.cat(parts, 2)
        self.maps.append(Map(weights, *who, self.group))
        return weights

    def _scores(self, at: Attention, q: Tensor, k: Tensor) -> Tensor:
        rows, columns = q.shape[2], k.shape[2]
        if at.spelling.how == "additive":
            scores = torch.einsum("bhijd,hd->bhij", torch.tanh(q.unsqueeze(3) + k.unsqueeze(2)), at.mix)
        else:
            scores = torch.matmul(q, k.transpose(2, 3)) / q.shape[3] ** 0.5
        if at.spelling.extra == "bias":
            scores = scores + at.bias[:, :rows, :columns]
        if at.spelling.extra == "relative":
            middle = at.relative.num_embeddings // 2
            table = [[middle + i - j for j in range(columns)] for i in range(rows)]
            scores = scores + at.relative.weight[torch.tensor(table)].permute(2, 0, 1)
        return scores

    def _changed(self, at: Attention, a: Tensor, b: Tensor, scores: Tensor) -> Tensor:
        if at.spelling.extra == "edges":
            apart = torch.tanh(a.unsqueeze(2) - b.unsqueeze(1))
            edges = torch.einsum("bijd,hd->bhij", apart, at.edge.weight) + at.edge.bias[:, None, None]
            scores = scores + edges
        return 2 * torch.tanh(scores / 2) if at.spelling.extra == "capped" else scores

    def _merge(self, given: Tensor, bias: Tensor, columns: list[int]) -> tuple[Tensor, list[int]]:
        """New tokens, and what each old one gives to them [batch, new, old, width]."""
        new, made = self._new(given.shape[1]), given.sum(2) + bias
        self.made[len(self.maps)] = made
        self.maps.append(Map(given, new, columns, self.group, merges=True))
        return made, new

    def _replaced(self, layer: Layer, block: Block, i: int, j: int) -> None:
        """Steps that need no sum with what was there."""
        x, t = self.x[i], self.tokens[i]
        if layer.kind == "concat":
            self.x[i], self.tokens[i], self.pads[i] = torch.cat([x, self.x[j]], 1), t + self.tokens[j], None
        elif layer.kind == "merge":
            self.pads[i] = None
            if len(t) % 2 == 0 and len(t) >= 4:
                half = torch.eye(WIDTH, dtype=x.dtype) / 2
                left, right, bias = {
                    1: lambda: (*block.merge.weight.split(WIDTH, 1), block.merge.bias),
                    2: lambda: (*block.stride.weight.unbind(2), block.stride.bias),
                    4: lambda: (half, half, torch.zeros(WIDTH, dtype=x.dtype)),
                }[layer.spelling.heads]()
                both = torch.stack([x[:, ::2] @ left.T, x[:, 1::2] @ right.T], 2)
                given = torch.stack(
                    [F.pad(both[:, n], (0, 0, 2 * n, len(t) - 2 * n - 2)) for n in range(len(t) // 2)], 1
                )
                self.x[i], self.tokens[i] = self._merge(given, bias, t)
        else:
            self._library(layer, block, i, j)

    def _library(self, layer: Layer, block: Block, i: int, j: int) -> None:
        t, ok = self.tokens[i], self._allowed(layer)
        steps = [lambda y: self.attend(block.there, y, y, (t, t), ok)]
        if layer.kind == "decoder_layer":
            steps.append(lambda y: self._cross(block.back, y, self.x[j], (t, self.tokens[j])))
        steps.append(lambda y: block.after.two(F.relu(block.after.one(y))))
        for step in steps:
            self.group += 1
            x = self.x[i]
            self.x[i] = x + step(block.norm(x)) if layer.norm == "pre" else block.norm(x + step(x))

    def _layer(self, layer: Layer, block: Block) -> None:
        self.group += 1
        i, j = layer.stream, (layer.stream + 1) % len(self.x)
        if layer.kind in ("concat", "merge", *LIBRARY):
            self._replaced(layer, block, i, j)
            return
        pre = block.norm if layer.norm == "pre" else (lambda x: x)
        if layer.kind == "latents":
            old, before = self.x[i], self.tokens[i]
            self.tokens[i], self.pads[i] = self._new(len(block.latents)), None
            self.x[i] = block.latents.repeat(len(old), 1, 1)
            made = {i: self._cross(block.there, pre(self.x[i]), pre(old), (self.tokens[i], before))}
        elif layer.kind in ("self", "window", "shifted_window", "masked_shift"):
            y = pre(self.x[i])
            made = {i: self.attend(block.there, y, y, (self.tokens[i], self.tokens[i]), self._allowed(layer))}
        elif layer.kind == "slice":
            y, t = pre(self.x[i]), self.tokens[i]
            first = self._cross(block.there, y[:, :1], y, (t[:1], t))
            made = {i: torch.cat([first, torch.zeros_like(y[:, 1:])], 1)}
        elif layer.kind == "part":
            y, t = pre(self.x[i]), self.tokens[i]
            m = (len(t) + 1) // 2
            made = {i: self._cross(block.there, y, y[:, :m], (t, t[:m]))}
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
        if layer.kind in ("self", *LIBRARY):
            if mask in ("causal", "causal_additive"):
                return (place[:, None] >= place)[None]
            if mask == "band":
                return ((place[:, None] - place).abs() <= 1)[None]
            if mask == "padding" and pad is not None:
                first = torch.ones(len(pad), n - pad.shape[1], dtype=torch.bool)
                return torch.cat([first, pad], 1)[:, None].repeat(1, n, 1)
        elif n % 2 == 0:
            window = place // (n // 2) if layer.kind == "window" else (place - 1) % n // (n // 2)
            if layer.kind == "masked_shift":
                window[0] = 2  # the first is alone where the others of its window come from the end
            return (window[:, None] == window)[None]
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
        self.group += 1
        if pool == "query":
            new = self._new(1)
            asked = self._cross(self.model.asking, self.model.ask.repeat(len(x), 1, 1), x, (new, t))
            return asked[:, 0], new
        if pool == "max":
            share = (x == x.amax(1, keepdim=True)).to(x.dtype)
            share = share / share.sum(1, keepdim=True)  # equal maxima share alike, as in PyTorch's gradient
        else:
            share = torch.ones_like(x)
            if pool == "masked_mean":
                share[:, -1] = 0
            share = share / share.sum(1, keepdim=True)
        made, new = self._merge((share * x)[:, None], torch.zeros(WIDTH, dtype=x.dtype), t)
        return made[:, 0], new


def wanted(model: Model, inputs: tuple[Tensor, ...], target: int) -> Wanted:
    """The equations for class `target` (of token 1, where each token has logits)."""
    run = Reference(model, inputs)
    score = run.output[:, 1, target] if run.plan.pool == "tokens" else run.output[:, target]
    wrt = [run.made.get(n, m.weights) for n, m in enumerate(run.maps)]
    slopes = torch.autograd.grad(score.sum(), wrt, allow_unused=True)
    used = [g is not None for g in slopes]
    with torch.no_grad():
        found = [averaged(m, g) for m, g in zip(run.maps, slopes, strict=True)]
        rows = []
        for sample in range(run.plan.batch):
            row = relevancy(run.maps, [a[sample] for a in found], run.count)[run.read[0]]
            row[run.read[0]] = 0  # the own entry is set aside
            rows.append(row)
        table = torch.stack(rows)
    listed = _listed(run.maps, used)
    return Wanted(score.detach(), listed, [table[:, t] for t in run.inputs], run.maps, used)


def _listed(maps: list[Map], used: list[bool]) -> list[list[str]]:
    shown = [live or m.merges for m, live in zip(maps, used, strict=True)]
    choices = itertools.product(*([True] if live else [True, False] for live in shown))
    return [sorted(kinds(list(itertools.compress(maps, choice)))) for choice in choices]
