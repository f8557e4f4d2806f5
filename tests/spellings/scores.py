"""Spellings of the scores and of their product: axes, letters, folding, biases, norms, masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo.spec import Builder, floats

from spellings.base import HEAD, HEADS, TOKENS, WIDTH, Spelling, case, merge, site

SCALE = HEAD**-0.5


class Plain(Spelling):
    """softmax(q kᵀ) v; the other modules of this file change one thing of it."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2) * SCALE

    def normalise(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        weights = self.normalise(self.scores(q, k))
        return merge(weights @ v), weights


class KeysFirst(Plain):
    """k qᵀ with the softmax over the rows, and the map turned before the values."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        weights = (k @ q.transpose(-1, -2) * SCALE).softmax(-2)
        return merge(weights.transpose(-1, -2) @ v), weights.transpose(-1, -2)


class ValuesFirst(Plain):
    """vᵀ times the turned map: queries come out on the last axis."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        weights = (q @ k.transpose(-1, -2) * SCALE).softmax(-1)
        return merge((v.transpose(-1, -2) @ weights.transpose(-1, -2)).transpose(-1, -2)), weights


class Einsum(Plain):
    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (f(x).view(*x.shape[:2], HEADS, HEAD) for f in (self.q, self.k, self.v))
        weights = torch.einsum("bqhd,bkhd->bhqk", q * SCALE, k).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2), weights


class EinsumHeadsLast(Plain):
    """Other letters, the head axis last: the softmax runs over axis 2 of [b, i, j, n]."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (f(x).view(*x.shape[:2], HEADS, HEAD) for f in (self.q, self.k, self.v))
        weights = torch.einsum("bind,bjnd->bijn", q, k).mul(SCALE).softmax(dim=2)
        return torch.einsum("bijn,bjnd->bind", weights, v).flatten(2), weights.permute(0, 3, 1, 2)


class EinsumKeysFirst(Plain):
    """Letters that put the keys' axis before the queries'."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (f(x).view(*x.shape[:2], HEADS, HEAD) for f in (self.q, self.k, self.v))
        weights = torch.einsum("nthc,nshc->nsth", q, k).mul(SCALE).softmax(dim=1)
        return torch.einsum("nsth,nshc->nthc", weights, v).flatten(2), weights.permute(0, 3, 2, 1)


class HeadsLast(Plain):
    """[batch, token, dim, head]: features split the other way round."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (f(x).view(*x.shape[:2], HEAD, HEADS).permute(0, 3, 1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return (weights @ v).permute(0, 2, 3, 1).flatten(2), weights


class Additive(Plain):
    """Bahdanau: wᵀ tanh(q + k), one head."""

    def extend(self) -> None:
        self.w = nn.Linear(WIDTH, 1)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.w(torch.tanh(self.q(x)[:, :, None] + self.k(x)[:, None])).squeeze(-1)
        weights = scores.softmax(-1)
        return weights @ self.v(x), weights[:, None]


class Folded(Plain):
    """Heads folded into the batch; bmm."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.shape[0]
        q, k, v = (t.reshape(batch * HEADS, -1, HEAD) for t in self.qkv(x))
        weights = torch.bmm(q * SCALE, k.transpose(1, 2)).softmax(-1)
        update = torch.bmm(weights, v).view(batch, HEADS, -1, HEAD)
        return merge(update), weights.view(batch, HEADS, *weights.shape[1:])


class FoldedBias(Plain):
    """baddbmm: the scores with a bias, heads folded into the batch."""

    def extend(self) -> None:
        self.bias = nn.Parameter(torch.randn(HEADS, 1, TOKENS))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.shape[0]
        q, k, v = (t.reshape(batch * HEADS, -1, HEAD) for t in self.qkv(x))
        bias = self.bias.repeat(batch, 1, 1)
        weights = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=SCALE).softmax(-1)
        update = torch.bmm(weights, v).view(batch, HEADS, -1, HEAD)
        return merge(update), weights.view(batch, HEADS, *weights.shape[1:])


class MaskAdded(Plain):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        mask = torch.full((TOKENS, TOKENS), float("-inf")).triu(2)
        return super().scores(q, k) + mask


class MaskFilled(Plain):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(2)
        return super().scores(q, k).masked_fill(mask, torch.finfo(q.dtype).min)


class MaskWhere(Plain):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril(1)
        return torch.where(mask, super().scores(q, k), torch.tensor(-1e9))


class Softcap(Plain):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return 5.0 * torch.tanh(super().scores(q, k) / 5.0)


class RelativeBias(Plain):
    """A learned table, looked up by the distance of query and key."""

    def extend(self) -> None:
        self.table = nn.Parameter(torch.randn(2 * TOKENS - 1, HEADS))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        place = torch.arange(TOKENS)
        distance = place[:, None] - place[None] + TOKENS - 1
        bias = self.table[distance.flatten()].view(TOKENS, TOKENS, HEADS).permute(2, 0, 1)
        return super().scores(q, k) + bias[None]


class RelativeKeys(Plain):
    """Shaw et al.: queries also meet an embedding of the distance."""

    def extend(self) -> None:
        self.table = nn.Embedding(2 * TOKENS - 1, HEAD)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        place = torch.arange(TOKENS)
        keys = self.table(place[None] - place[:, None] + TOKENS - 1)
        return super().scores(q, k) + torch.einsum("bhqd,qkd->bhqk", q, keys)


class RelativeShift(Plain):
    """Transformer-XL: scores against distances, shifted into place by a pad and a view."""

    def extend(self) -> None:
        self.place = nn.Linear(WIDTH, WIDTH, bias=False)
        self.register_buffer("waves", floats(2 * TOKENS - 1, WIDTH, seed=9))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        r = self.place(self.waves).view(-1, HEADS, HEAD).permute(1, 2, 0)
        by_distance = q @ r  # [batch, head, query, distance]
        batch, heads, nq, nd = by_distance.shape
        padded = functional.pad(by_distance, (1, 0)).view(batch, heads, nd + 1, nq)
        shifted = padded[:, :, 1:].reshape(batch, heads, nq, nd)[..., :TOKENS]
        return super().scores(q, k) + shifted


class NormedQueries(Plain):
    """Layer norm of queries and keys, per head."""

    def extend(self) -> None:
        self.q_norm, self.k_norm = nn.LayerNorm(HEAD), nn.LayerNorm(HEAD)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(self.q_norm(q), self.k_norm(k))


class Cosine(Plain):
    """Unit queries and keys, a learned temperature per head, clamped."""

    def extend(self) -> None:
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        cosine = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
        return cosine * self.temperature.clamp(max=4.6).exp()


class Distance(Plain):
    """Scores are minus the squared distance of query and key."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return -((q[..., :, None, :] - k[..., None, :, :]) ** 2).sum(-1)


class Rotary(Plain):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        angles = torch.arange(TOKENS)[:, None] * torch.tensor([1.0, 0.1])[None]
        cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

        def turn(t: Tensor) -> Tensor:
            first, second = t.chunk(2, -1)
            return t * cos + torch.cat([-second, first], -1) * sin

        return super().scores(turn(q), turn(k))


class RotaryComplex(Plain):
    """Rotary by complex numbers, as in the first Llama."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        angles = torch.arange(TOKENS)[:, None] * torch.tensor([1.0, 0.1])[None]
        unit = torch.polar(torch.ones_like(angles), angles)

        def turn(t: Tensor) -> Tensor:
            pairs = torch.view_as_complex(t.reshape(*t.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * unit).flatten(-2)

        return super().scores(turn(q), turn(k))


class TalkingBefore(Plain):
    """A linear over the head axis mixes the scores."""

    def extend(self) -> None:
        self.talk = nn.Linear(HEADS, HEADS, bias=False)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        mixed: Tensor = self.talk(super().scores(q, k).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return mixed


class TalkingAfter(TalkingBefore):
    """A linear over the head axis mixes the weights; the map is what meets the values."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return Plain.scores(self, q, k)

    def normalise(self, scores: Tensor) -> Tensor:
        mixed: Tensor = self.talk(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return mixed


class TalkingConv(TalkingBefore):
    """The same by a 1 x 1 convolution, whose channels are the heads."""

    def extend(self) -> None:
        self.talk = nn.Conv2d(HEADS, HEADS, 1, bias=False)  # type: ignore[assignment]

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        mixed: Tensor = self.talk(Plain.scores(self, q, k))
        return mixed


SCORES: dict[str, Builder] = {
    "plain": case(Plain),
    "keys_first": case(KeysFirst),
    "values_first": case(ValuesFirst),
    "einsum": case(Einsum),
    "einsum-heads_last": case(EinsumHeadsLast),
    "einsum-keys_first": case(EinsumKeysFirst),
    "heads_last": case(HeadsLast),
    "additive": case(Additive, (site(heads=1),)),
    "folded-bmm": case(Folded),
    "folded-baddbmm": case(FoldedBias),
    "mask-added": case(MaskAdded),
    "mask-filled": case(MaskFilled),
    "mask-where": case(MaskWhere),
    "softcap": case(Softcap),
    "relative-bias": case(RelativeBias),
    "relative-keys": case(RelativeKeys),
    "relative-shift": case(RelativeShift),
    "norm-layer": case(NormedQueries),
    "norm-cosine": case(Cosine),
    "distance": case(Distance),
    "rotary": case(Rotary),
    "rotary-complex": case(RotaryComplex),
    "talking-before": case(TalkingBefore),
    "talking-after": case(TalkingAfter),
    "talking-conv": case(TalkingConv),
}
