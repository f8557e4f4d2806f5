"""The softmax taken apart: exponentials and sums by hand, in blocks, late, in logarithms, online."""

from __future__ import annotations

import math

import torch
from spellings.base import HEAD, HEADS, TOKENS
from torch import Tensor
from torch.nn import functional

from variants.base import SCALE, Expected, Variant, causal, whole


class Online(Variant):
    """Flash attention in Python: a running maximum and a running sum over blocks of two keys."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        top = torch.full((*q.shape[:-1], 1), -math.inf)
        total = torch.zeros_like(top)
        out = torch.zeros_like(q)
        for some_k, some_v in zip(k.split(2, 2), v.split(2, 2), strict=True):
            scores = self.scores(q, some_k)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights, shrink = (scores - higher).exp(), (top - higher).exp()
            total = total * shrink + weights.sum(-1, keepdim=True)
            out = out * shrink + weights @ some_v
            top = higher
        return out / total


class OnlineCausal(Online):
    """Both loops, over blocks of queries and of keys; blocks in the future are skipped."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return self.scores(q, k).masked_fill(~causal(), -math.inf).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = []
        for i in range(0, TOKENS, 2):
            some_q = q[:, :, i : i + 2] * SCALE
            top = torch.full((*some_q.shape[:-1], 1), -1e30)
            total, out = torch.zeros_like(top), torch.zeros_like(some_q)
            for j in range(0, i + 2, 2):
                scores = some_q @ k[:, :, j : j + 2].mT
                if i == j:
                    scores = scores.masked_fill(~causal(2), -math.inf)
                block_top = scores.max(dim=-1, keepdim=True).values
                higher = torch.max(top, block_top)
                weights = torch.exp(scores - higher)
                total = torch.exp(top - higher) * total + weights.sum(-1, keepdim=True)
                out = torch.exp(top - higher) * out + weights @ v[:, :, j : j + 2]
                top = higher
            rows.append(out / total)
        return torch.cat(rows, 2)


class OnlineInPlace(Online):
    """The same, written into one output block by block."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, total = torch.zeros_like(q), torch.zeros(*q.shape[:-1])
        top = torch.full(q.shape[:-1], -1e30)
        for j in range(0, TOKENS, 3):
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k[:, :, j : j + 3]) * SCALE
            higher = torch.maximum(top, scores.amax(-1))
            weights = torch.exp(scores - higher.unsqueeze(-1))
            shrink = torch.exp(top - higher)
            total.mul_(shrink).add_(weights.sum(-1))
            out.mul_(shrink.unsqueeze(-1)).add_(weights @ v[:, :, j : j + 3])
            top = higher
        return out.div_(total.unsqueeze(-1))


class OnlineNormalised(Online):
    """What was summed up so far is kept divided by its sum after every block."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, total = torch.zeros_like(q), torch.zeros(*q.shape[:-1], 1)
        top = torch.full((*q.shape[:-1], 1), -1e30)
        for some_k, some_v in zip(k.split(2, 2), v.split(2, 2), strict=True):
            scores = self.scores(q, some_k)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights, shrink = (scores - higher).exp(), (top - higher).exp()
            larger = total * shrink + weights.sum(-1, keepdim=True)
            out = out * (total / larger) * shrink + weights @ some_v / larger
            top, total = higher, larger
        return out


class Ring(Variant):
    """Two halves attended to apart, each normalised, then weighed by their log sums, as in ring attention."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs, sums = [], []
        for some_k, some_v in zip(k.chunk(2, 2), v.chunk(2, 2), strict=True):
            scores = self.scores(q, some_k)
            sums.append(scores.logsumexp(-1, keepdim=True))
            outs.append(scores.softmax(-1) @ some_v)
        total = torch.logaddexp(*sums)
        return outs[0] * (sums[0] - total).exp() + outs[1] * (sums[1] - total).exp()


class Merged(Variant):
    """Out and log sum carried along, merged by a sigmoid of their difference."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first, second = self.scores(q, k[:, :, :2]), self.scores(q, k[:, :, 2:])
        one, other = first.softmax(-1) @ v[:, :, :2], second.softmax(-1) @ v[:, :, 2:]
        share = torch.sigmoid(second.logsumexp(-1) - first.logsumexp(-1)).unsqueeze(-1)
        return one - share * (one - other)


class Stacked(Variant):
    """Blocks of keys one by one, with their own maximum each; stacked, brought to one scale and summed up."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sums, values, largest = [], [], []
        for some_keys, some_values in zip(k.split(2, 2), v.split(2, 2), strict=True):
            scores = self.scores(q, some_keys)
            largest.append(scores.amax(-1))
            weights = (scores - largest[-1].unsqueeze(-1)).exp()
            sums.append(weights.sum(-1))
            values.append(weights @ some_values)
        top = torch.stack(largest, -1)
        scale = (top - top.amax(-1, keepdim=True)).exp()
        total = (torch.stack(sums, -1) * scale).sum(-1)
        summed = (torch.stack(values, -1) * scale.unsqueeze(-2)).sum(-1)
        return summed / (total.unsqueeze(-1) + 1e-8)


class StackedTiles(Stacked):
    """The same for one block of queries after the other, with dropout that is left at 0."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return functional.dropout(super().scores(q, k), 0.0)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([super(StackedTiles, self).spell(some, k, v) for some in q.split(2, 2)], 2)


class LogSpace(Variant):
    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.scores(q, k)
        return torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True)) @ v


class OnesColumn(Variant):
    """The sum of the weights comes out of the product itself: values with a column of ones."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = self.scores(q, k).exp()
        out = weights @ torch.cat([v, torch.ones_like(v[..., :1])], -1)
        return out[..., :-1] / out[..., -1:]


class DividedByProduct(Variant):
    """The sums by a product with ones."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = self.scores(q, k).exp()
        return (weights @ v) / (weights @ torch.ones(TOKENS, 1))


class DividedAfterMerge(Variant):
    """Divided when heads have been put side by side already."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.exp(self.scores(q, k))
        out = (weights @ v).transpose(1, 2)
        return (out / weights.sum(-1).transpose(1, 2).unsqueeze(-1)).transpose(1, 2)


class MaskMultiplied(Variant):
    """Masked by a product after the exponential, then divided."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return self.scores(q, k).masked_fill(~causal(), -math.inf).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = self.scores(q, k).exp() * causal().float()
        return (weights / (weights.sum(-1, keepdim=True) + 1e-12)) @ v


class Renormalised(MaskMultiplied):
    """A softmax, masked by a product, normalised again in place."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = self.scores(q, k).softmax(-1)
        weights = weights * causal()
        weights /= weights.sum(-1, keepdim=True)
        return weights @ v


class PowerOfTwo(Variant):
    """exp2 of scores in units of log 2, as kernels do."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q * (SCALE / math.log(2))) @ k.mT
        weights = torch.exp2(scores - scores.max(-1, keepdim=True)[0])
        return weights.div(weights.sum(-1, keepdim=True)) @ v


class NormalisedByL1(Variant):
    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.normalize(self.scores(q, k).exp(), p=1.0, dim=-1) @ v


class Double(Variant):
    """float64 inside float32."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.double(), k.double(), v.double()
        return (self.scores(q, k).softmax(-1) @ v).float()


class Autocast(Variant):
    """bfloat16 by autocast, the softmax in float32."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            weights = self.scores(q, k).softmax(-1)
            out = weights @ v
        return out.float()


class BmmAdded(Variant):
    """baddbmm into an empty tensor with beta 0, in place softmax steps."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.reshape(-1, TOKENS, HEAD) for t in (q, k, v))
        scores = torch.baddbmm(torch.empty(len(q), TOKENS, TOKENS), q, k.mT, beta=0, alpha=SCALE)
        scores -= scores.amax(-1, keepdim=True)
        scores.exp_()
        scores /= scores.sum(-1, keepdim=True)
        return torch.bmm(scores, v).view(-1, HEADS, TOKENS, HEAD)


BLOCKS: dict[str, Expected] = {
    "online": Expected(Online, whole()),
    "online-causal": Expected(
        OnlineCausal,
        [("self", 2, n, HEADS) for n in (2, 4, 6)],
    ),
    "online-in_place": Expected(OnlineInPlace, whole()),
    "online-normalised": Expected(OnlineNormalised, whole()),
    "ring": Expected(Ring, whole()),
    "merged": Expected(Merged, whole()),
    "log_space": Expected(LogSpace, whole()),
    "stacked": Expected(Stacked, whole()),
    "stacked-tiles": Expected(StackedTiles, [("self", 2, TOKENS, HEADS)] * 3),
    "ones_column": Expected(OnesColumn, whole()),
    "divided_by_product": Expected(DividedByProduct, whole()),
    "divided_after_merge": Expected(DividedAfterMerge, whole()),
    "mask-multiplied": Expected(MaskMultiplied, whole()),
    "renormalised": Expected(Renormalised, whole()),
    "exp2": Expected(PowerOfTwo, whole()),
    "l1": Expected(NormalisedByL1, whole()),
    "double": Expected(Double, whole()),
    "autocast": Expected(Autocast, whole(), tolerance=3e-2),
    "baddbmm": Expected(BmmAdded, whole()),
}
