"""The module of a plan: attention is spelled as the plan says, and nothing here is kept for the reference
but weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from random_models.plan import LIBRARY, WIDTH, Layer, Plan, Spelling, Stream
from random_models.spelled import Attention, give_weights

CLASSES = 3


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
        self.latents = nn.Parameter(torch.randn(layer.latents, WIDTH))
        self.merge, self.stride = nn.Linear(2 * WIDTH, WIDTH), nn.Conv1d(WIDTH, WIDTH, 2, 2)
        if layer.kind in LIBRARY:
            self.whole = self._of_the_library(layer)

    def _of_the_library(self, layer: Layer) -> nn.Module:
        make = nn.TransformerEncoderLayer if layer.kind == "encoder_layer" else nn.TransformerDecoderLayer
        whole = make(
            WIDTH, layer.spelling.heads, WIDTH, batch_first=True, norm_first=layer.norm == "pre", dropout=0.0
        )
        give_weights(whole.self_attn, self.there)
        if isinstance(whole, nn.TransformerDecoderLayer):
            give_weights(whole.multihead_attn, self.back)
        whole.linear1.load_state_dict(self.after.one.state_dict())
        whole.linear2.load_state_dict(self.after.two.state_dict())
        return whole


class Source(nn.Module):
    """Tokens of one input [batch, tokens, width]."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        makers = {"ids": nn.Embedding(12, WIDTH), "features": nn.Linear(5, WIDTH)}
        self.embed = makers.get(stream.data) or nn.Conv2d(3, WIDTH, 2, stride=2)
        self.register = nn.Parameter(torch.randn(1, stream.register, WIDTH))
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
        queries = [layer.latents for layer in plan.layers if layer.kind == "latents"]
        room = max(sum(s.size + s.register for s in plan.streams), *queries, 0)
        self.sources = nn.ModuleList(Source(s) for s in plan.streams)
        self.blocks = nn.ModuleList()
        for layer in plan.layers:
            block = Block(layer, room)
            again = layer.shared and layer.kind not in LIBRARY and self.blocks
            if again and plan.layers[len(self.blocks) - 1].spelling == layer.spelling:
                earlier: Any = self.blocks[-1]
                block.there = earlier.there
            self.blocks.append(block)
        self.score, self.head = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, CLASSES)
        self.ask, self.asking = nn.Parameter(torch.randn(1, 1, WIDTH)), Attention(Spelling(heads=2), 1)

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
            if layer.kind in ("latents", "merge", "concat"):
                pads[i] = None
        return self._read(x[0])

    def _allowed(self, layer: Layer, x: Tensor, pad: Tensor | None) -> Tensor | None:
        mask, n = layer.spelling.mask, x.shape[1]
        masked = layer.kind in ("self", *LIBRARY)
        if not masked or mask == "none" or (mask == "padding" and pad is None):
            return None
        if mask == "padding":
            assert pad is not None
            return F.pad(pad, (n - pad.shape[1], 0), value=True)[:, None].expand(-1, n, -1)
        whole = torch.ones(1, n, n, dtype=torch.bool)
        return whole.tril(1).triu(-1) if mask == "band" else whole.tril()

    def _step(self, layer: Layer, block: Block, x: list[Tensor], allowed: Tensor | None) -> list[Tensor]:
        i, j, x = layer.stream, (layer.stream + 1) % len(x), list(x)
        n = x[i].shape[1]
        pre = block.norm if layer.norm == "pre" else nn.Identity()
        if layer.kind in ("concat", "merge", *LIBRARY):
            x[i] = self._replaced(layer, block, x[i], x[j], allowed)
            return x
        if layer.kind == "latents":
            old, x[i] = x[i], block.latents.expand(len(x[i]), -1, -1)
            made = {i: block.there(pre(x[i]), pre(old))}
        elif layer.kind == "self":
            made = {i: block.there(pre(x[i]), pre(x[i]), allowed)}
        elif layer.kind in ("window", "shifted_window", "masked_shift"):
            made = {i: self._windows(layer, block, pre(x[i]))}
        elif layer.kind == "slice":
            made = {i: F.pad(block.there(pre(x[i][:, :1]), pre(x[i])), (0, 0, 0, n - 1))}
        elif layer.kind == "part":
            y = pre(x[i])
            made = {i: block.there(y, y[:, : (n + 1) // 2])}
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

    def _replaced(self, layer: Layer, block: Block, x: Tensor, y: Tensor, allowed: Tensor | None) -> Tensor:
        """Steps that need no sum with what was there."""
        if layer.kind == "concat":
            return torch.cat([x, y], 1)
        if layer.kind == "merge":
            return self._merged(layer, block, x)
        mask = None if allowed is None else ~allowed[0]
        pad = None
        if allowed is not None and layer.spelling.mask == "padding":
            mask, pad = None, ~allowed[:, 0]
        if layer.kind == "encoder_layer":
            return block.whole(x, src_mask=mask, src_key_padding_mask=pad)
        return block.whole(x, y, tgt_mask=mask, tgt_key_padding_mask=pad)

    def _merged(self, layer: Layer, block: Block, x: Tensor) -> Tensor:
        """Two neighbours become one token; streams of an odd length, or of two tokens, stay."""
        if x.shape[1] % 2 or x.shape[1] < 4:
            return x
        if layer.spelling.heads == 1:
            return block.merge(x.unflatten(1, (-1, 2)).flatten(2))
        return (block.stride(x.mT) if layer.spelling.heads == 2 else F.avg_pool1d(x.mT, 2)).mT

    def _windows(self, layer: Layer, block: Block, x: Tensor) -> Tensor:
        n = x.shape[1]
        if n % 2:
            return block.there(x, x)
        shift = layer.kind != "window"
        allowed = None
        if layer.kind == "masked_shift":  # what the shift brought from the other end is no neighbour
            came = (torch.arange(n) == n - 1).view(2, -1)
            allowed = (came[:, :, None] == came[:, None]).repeat(len(x), 1, 1)
        y = (x.roll(-1, 1) if shift else x).unflatten(1, (2, -1)).flatten(0, 1)
        y = block.there(y, y, allowed).unflatten(0, (-1, 2)).flatten(1, 2)
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
        if pool == "query":
            return self.head(self.asking(self.ask.expand(len(x), -1, -1), x)[:, 0])
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
