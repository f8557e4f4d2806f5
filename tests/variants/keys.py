"""Keys one at a time: sums over keys in a loop; gates that forget, added up along the keys."""

from __future__ import annotations

import math

import torch
from spellings.base import HEADS, TOKENS
from torch import Tensor
from torch.nn import functional

from variants.base import Expected, Variant, causal, whole


class KeyByKey(Variant):
    """out = out + weights of key j * value j."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = self.map(q, k)
        out = torch.zeros_like(v)
        for j in range(TOKENS):
            out = out + weights[..., j : j + 1] * v[:, :, j : j + 1]
        return out


class KeyByKeyScored(Variant):
    """Each key's weight is worked out anew, from a sum of exponentials; no row of weights is ever held."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sums = torch.logsumexp(self.scores(q, k), -1, keepdim=True)
        out = torch.zeros_like(q)
        for j in range(k.shape[2]):
            out = out + (self.scores(q, k[:, :, j : j + 1]) - sums).exp() * v[:, :, j : j + 1]
        return out


class KeysSummed(Variant):
    """The same by Python's sum, values first."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = self.map(q, k)
        return sum(v[:, :, None, j] * weights[..., j, None] for j in range(TOKENS))  # type: ignore[return-value]


class KeysWritten(Variant):
    """In place, causal; in other layouts too: [batch, token, head, dim]."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return self.scores(q, k).masked_fill(~causal(), -math.inf).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights, v = self.map(q, k).permute(3, 0, 2, 1), v.transpose(1, 2)
        out = torch.zeros_like(v)
        for j in range(TOKENS):
            out += weights[j].unsqueeze(-1) * v[:, j].unsqueeze(1)
        return out.transpose(1, 2)


class Gated(Variant):
    """Weights that do not sum to 1: every key stays by itself."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return self.scores(q, k).sigmoid()

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = self.map(q, k)
        out = weights[..., :1] * v[:, :, :1]
        for j in range(1, TOKENS):
            out = out + weights[..., j : j + 1] * v[:, :, j : j + 1]
        return out


class EveryPair(Variant):
    """Loops over queries and keys, scores and values one by one."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = []
        for i in range(TOKENS):
            scores = torch.stack([(q[:, :, i] * k[:, :, j]).sum(-1) * 0.5 for j in range(TOKENS)], -1)
            weights = scores.softmax(-1)
            rows.append(sum(weights[..., j, None] * v[:, :, j] for j in range(TOKENS)))
        return torch.stack(rows, 2)  # type: ignore[arg-type]


class Online(Variant):
    """Running maximum and sum, one key after the other."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        largest = torch.full((*q.shape[:-1], 1), -1e9)
        total, out = torch.zeros_like(largest), torch.zeros_like(v)
        for j in range(TOKENS):
            score = (q * k[:, :, j : j + 1]).sum(-1, keepdim=True) * 0.5
            new = torch.maximum(largest, score)
            part, old = (score - new).exp(), (largest - new).exp()
            total = total * old + part
            out, largest = out * old + part * v[:, :, j : j + 1], new
        return out / total


class Forgetting(Variant):
    """Gates of the tokens between key and query are added to the scores (a forgetting transformer)."""

    def bias(self, k: Tensor) -> Tensor:
        kept = functional.logsigmoid(k[..., 0]).cumsum(-1)
        return (kept[..., :, None] - kept[..., None, :]).masked_fill(~causal(), -math.inf)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return (self.scores(q, k) + self.bias(k)).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class ForgettingFused(Forgetting):
    """The same as the mask of a kernel."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, self.bias(k), scale=0.5)


class Decaying(Variant):
    """No softmax: products of gates between key and query scale the scores (retention)."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        kept = k[..., 0].sigmoid().cumprod(-1)
        return self.scores(q, k) * (kept[..., :, None] / kept[..., None, :]).tril()

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class StickBreaking(Variant):
    """Each key takes a share of what nearer ones have left; sums along the scores themselves."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        scores, before = self.scores(q, k), causal().tril(-1)
        left = functional.logsigmoid(-scores).masked_fill(~before, 0)
        nearer = left.flip(-1).cumsum(-1).flip(-1) - left
        return (functional.logsigmoid(scores) + nearer).exp().masked_fill(~before, 0)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class CountedPlaces(Variant):
    """Places are counted by a running sum of ones, and bias the scores by distance."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        places = torch.ones(TOKENS).cumsum(0)
        slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])[:HEADS, None, None]
        return (self.scores(q, k) - slopes * (places[:, None] - places).abs()).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


PAIR = [("self", 1, TOKENS, HEADS)]
KEYS: dict[str, Expected] = {
    "keys-loop": Expected(KeyByKey, whole()),
    "keys-loop-scored": Expected(KeyByKeyScored, whole()),
    "keys-sum": Expected(KeysSummed, whole()),
    "keys-written": Expected(KeysWritten, whole()),
    "keys-gated": Expected(Gated, [("self", TOKENS, 1, HEADS)] * TOKENS, normaliser="sigmoid"),
    "keys-queries": Expected(EveryPair, PAIR * TOKENS),
    "keys-online": Expected(Online, whole()),
    "gates-forget": Expected(Forgetting, whole()),
    "gates-fused": Expected(ForgettingFused, whole()),
    "gates-decay": Expected(Decaying, whole(), normaliser="none"),
    "stick-breaking": Expected(StickBreaking, whole(), normaliser="none"),
    "places-counted": Expected(CountedPlaces, whole()),
}
