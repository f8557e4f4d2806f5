"""Loops and wrappers: over heads, samples, queries; vmap, checkpoint, script, parametrised weights."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from spellings.base import HEAD, HEADS, TOKENS, WIDTH, merge, split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from variants.base import BATCH, READ, SCALE, Expected, Variant, causal, whole


class HeadList(Variant):
    """A list of heads, each with layers of its own; outputs side by side."""

    def extend(self) -> None:
        self.parts = nn.ModuleList(
            nn.ModuleList(nn.Linear(WIDTH, HEAD) for _ in range(3)) for _ in range(HEADS)
        )

    def qkv(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (torch.stack([part[i](hidden) for part in self.parts], 1) for i in range(3))  # type: ignore[index]
        return q * 2, k, v

    def attend(self, hidden: Tensor) -> Tensor:
        outs = []
        for q, k, v in self.parts:  # type: ignore[misc]
            weights = functional.softmax(q(hidden) * 2 @ k(hidden).transpose(-2, -1) * SCALE, dim=-1)
            outs.append(weights @ v(hidden))
        return torch.cat(outs, dim=-1)


class HeadStack(Variant):
    """Heads in a loop, stacked on an axis of their own."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = [
            self.scores(a, b).softmax(-1) @ c
            for a, b, c in zip(*(t.unbind(1) for t in (q, k, v)), strict=True)
        ]
        return torch.stack(outs, 1)


class HeadWritten(Variant):
    """Heads written into one tensor by index."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        for head in range(HEADS):
            out[:, head] = self.scores(q[:, head], k[:, head]).softmax(-1) @ v[:, head]
        return out


class Samples(Variant):
    """One sample at a time."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.stack([self.scores(q[b], k[b]).softmax(-1) @ v[b] for b in range(q.shape[0])])


class SamplesWritten(Variant):
    """One sample at a time, with no batch axis at all, written in place."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(x.shape[0], 3)
        for b in range(x.shape[0]):
            hidden = self.embed(x[b])
            q, k, v = (f(hidden).view(TOKENS, HEADS, HEAD).transpose(0, 1) for f in (self.q, self.k, self.v))
            update = (self.scores(q, k).softmax(-1) @ v).transpose(0, 1).reshape(TOKENS, WIDTH)
            logits[b] = self.head((hidden + self.out(update))[READ])
        return logits


class QueryChunks(Variant):
    """Slices of queries read all keys, to save memory."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([self.scores(part, k).softmax(-1) @ v for part in q.split(3, dim=2)], dim=2)


class QueryByQuery(Variant):
    """Generation written as a loop: query i reads keys up to i."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return self.scores(q, k).masked_fill(~causal(), -math.inf).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = []
        for i in range(TOKENS):
            weights = self.scores(q[:, :, i : i + 1], k[:, :, : i + 1]).softmax(-1)
            outs.append(weights @ v[:, :, : i + 1])
        return torch.cat(outs, 2)


class GrowingCache(QueryByQuery):
    """The cache grows by a cat at every step."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = k[:, :, :0], v[:, :, :0]
        outs = []
        for i in range(TOKENS):
            keys = torch.cat([keys, k[:, :, i : i + 1]], 2)
            values = torch.cat([values, v[:, :, i : i + 1]], 2)
            outs.append(
                functional.scaled_dot_product_attention(q[:, :, i : i + 1], keys, values, scale=SCALE)
            )
        return torch.cat(outs, 2)


class StaticCache(Variant):
    """Keys and values go into a buffer of ten places by index_copy; the rest is masked."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = torch.zeros(2, k.shape[0], HEADS, 10, HEAD).unbind(0)
        places = torch.arange(TOKENS)
        keys, values = keys.index_copy(2, places, k), values.index_copy(2, places, v)
        mask = torch.arange(10) < TOKENS
        return self.scores(q, keys).masked_fill(~mask, -math.inf).softmax(-1) @ values


class Vmapped(Variant):
    """A function of one head of one sample, mapped twice."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.softmax(q @ k.T * SCALE, -1) @ v

        result: Tensor = torch.vmap(torch.vmap(one))(q, k, v)
        return result


class VmappedQueries(Variant):
    """Mapped over queries too: each is a vector."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.softmax(torch.mv(k, q) * SCALE, -1) @ v

        each = torch.vmap(torch.vmap(torch.vmap(one, in_dims=(0, None, None))))
        result: Tensor = each(q, k, v)
        return result


class Checkpointed(Variant):
    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result: Tensor = checkpoint(super().spell, q, k, v, use_reentrant=False)
        return result


class Scripted(Variant):
    """The layers are scripted, the attention is not."""

    def extend(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and used
            self.out = torch.jit.script(self.out)  # type: ignore[assignment]


class Parametrised(Variant):
    def extend(self) -> None:
        self.q, self.k = (nn.utils.parametrizations.weight_norm(layer) for layer in (self.q, self.k))
        self.v = nn.utils.parametrizations.spectral_norm(self.v)  # type: ignore[assignment]
        with torch.no_grad():
            self.q.parametrizations.weight.original0.mul_(2)

    def __init__(self) -> None:
        super().__init__()


class MultiHeadForward(Variant):
    """torch.nn.functional.multi_head_attention_forward."""

    def attend(self, hidden: Tensor) -> Tensor:
        x = hidden.transpose(0, 1)
        weights = {n: f.weight for n, f in (("q", self.q), ("k", self.k), ("v", self.v))}
        out, _ = functional.multi_head_attention_forward(
            x, x, x, WIDTH, HEADS, None, torch.cat([self.q.bias, self.k.bias, self.v.bias]), None, None,
            False, 0.0, torch.eye(WIDTH), torch.zeros(WIDTH), training=False, need_weights=False,
            use_separate_proj_weight=True, q_proj_weight=weights["q"], k_proj_weight=weights["k"],
            v_proj_weight=weights["v"],
        )  # fmt: skip
        return out.transpose(0, 1)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.mT * HEAD**-0.5).softmax(-1)


class Functional(Variant):
    """torch.func.functional_call with the module's own parameters."""

    def attend(self, hidden: Tensor) -> Tensor:
        weights = {f"{n}.{w}": getattr(getattr(self, n), w) for n in "qkv" for w in ("weight", "bias")}
        layers = nn.ModuleDict({n: nn.Linear(WIDTH, WIDTH) for n in "qkv"})
        q, k, v = (split(self._call(layers[n], weights, n, hidden)) for n in "qkv")
        return merge(self.spell(q, k, v))

    @staticmethod
    def _call(layer: nn.Module, weights: dict[str, Any], name: str, x: Tensor) -> Any:
        own = {w: weights[f"{name}.{w}"] for w in ("weight", "bias")}
        return torch.func.functional_call(layer, own, (x,))


class Compiled(Variant):
    """A compiled module inside."""

    def extend(self) -> None:
        self.compiled = torch.compile(_Core(), backend="eager")

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result: Tensor = self.compiled(q, k, v)
        return result


class _Core(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) * SCALE).softmax(-1) @ v


class Nested(Variant):
    """bmm over a list of samples and heads, rebuilt by two stacks."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = []
        for b in range(q.shape[0]):
            cols = []
            for h in range(HEADS):
                weights = torch.softmax(torch.mm(q[b, h], k[b, h].t()) * SCALE, 1)
                cols.append(torch.mm(weights, v[b, h]))
            rows.append(torch.stack(cols))
        return torch.stack(rows)


class WhileLoop(Variant):
    """A Python loop whose length is a tensor: recorded."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        left = q.abs().sum()
        rounds = 0
        while left > 1 and rounds < 3:
            left, rounds = left / 1e6, rounds + 1
        return self.scores(q, k).softmax(-1) @ v


class EarlyExit(Variant):
    """A decision by .item(): recorded."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.mean().item() > 1e3:
            return v
        return self.scores(q, k).softmax(-1) @ v


ONE = [("self", TOKENS, TOKENS, 1)]
LOOPS: dict[str, Expected] = {
    "heads-list": Expected(HeadList, ONE * HEADS),
    "heads-stack": Expected(HeadStack, ONE * HEADS),
    "heads-written": Expected(HeadWritten, ONE * HEADS),
    "samples": Expected(Samples, whole(BATCH)),
    "samples-written": Expected(SamplesWritten, whole(BATCH)),
    "samples-heads": Expected(Nested, ONE * HEADS * BATCH),
    "query_chunks": Expected(QueryChunks, [("self", 3, TOKENS, HEADS)] * 2),
    "query_by_query": Expected(QueryByQuery, [("self", 1, n, HEADS) for n in range(1, TOKENS + 1)]),
    "cache-growing": Expected(GrowingCache, [("self", 1, n, HEADS) for n in range(1, TOKENS + 1)]),
    "cache-static": Expected(StaticCache, whole()),
    "vmap": Expected(Vmapped, whole()),
    "vmap-queries": Expected(VmappedQueries, whole()),
    "checkpoint": Expected(Checkpointed, whole()),
    "script": Expected(Scripted, whole()),
    "parametrised": Expected(Parametrised, whole()),
    "multi_head_attention_forward": Expected(MultiHeadForward, whole()),
    "functional_call": Expected(Functional, whole()),
    "compiled": Expected(Compiled, whole()),
    "while": Expected(WhileLoop, whole()),
    "item": Expected(EarlyExit, whole()),
}
