"""What is added, masked, sorted or thresholded on the way from scores to weights."""

from __future__ import annotations

import math

import torch
from spellings.base import HEAD, HEADS, TOKENS
from torch import Tensor, nn
from torch.nn import functional

from variants.base import SCALE, Expected, Variant, causal, whole


class Weighed(Variant):
    """(some function of the scores) @ v: the function's value is the map."""

    def weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return self.weigh(self.scores(q, k))

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.weigh(self.scores(q, k)) @ v


class Alibi(Weighed):
    def weigh(self, scores: Tensor) -> Tensor:
        place = torch.arange(TOKENS)
        slopes = torch.tensor([2.0 ** -(n + 1) for n in range(HEADS)])
        bias = -(place[:, None] - place[None]).abs() * slopes[:, None, None]
        return (scores + bias).softmax(-1)


class T5Bias(Weighed):
    """A bucketed distance looks up an embedding of heads."""

    def extend(self) -> None:
        self.table = nn.Embedding(8, HEADS)

    def weigh(self, scores: Tensor) -> Tensor:
        place = torch.arange(TOKENS)
        gap = place[None] - place[:, None]
        large = 2 + (torch.log(gap.abs().clamp(min=1).float()) * 2).long()
        bucket = torch.where(gap.abs() < 2, gap.abs(), large).clamp(max=3) + 4 * (gap > 0)
        return (scores + self.table(bucket).permute(2, 0, 1).unsqueeze(0)).softmax(-1)


class MlpBias(Weighed):
    """A small network on the distance of two places gives the bias, as in SwinV2."""

    def extend(self) -> None:
        self.mlp = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, HEADS))

    def weigh(self, scores: Tensor) -> Tensor:
        place = torch.arange(TOKENS).float()
        gap = (place[:, None] - place[None])[..., None]
        return (
            scores + 4 * torch.sigmoid(self.mlp(gap.sign() * gap.abs().log1p())).permute(2, 0, 1)
        ).softmax(-1)


class TopK(Weighed):
    """Only the three best keys of a query count: all others by the threshold of the third."""

    def weigh(self, scores: Tensor) -> Tensor:
        third = scores.topk(3, dim=-1).values[..., -1:]
        return scores.masked_fill(scores < third, -math.inf).softmax(-1)


class TopKScattered(Weighed):
    """The three best weights, scattered into zeros."""

    def weigh(self, scores: Tensor) -> Tensor:
        best, which = scores.topk(3, -1)
        return torch.zeros_like(scores).scatter(-1, which, best.softmax(-1))


class TopKScatteredInPlace(Weighed):
    """A mask of minus infinity, opened at the best places."""

    def weigh(self, scores: Tensor) -> Tensor:
        mask = torch.full_like(scores, -math.inf)
        mask.scatter_(-1, torch.topk(scores, 3, dim=-1)[1], 0.0)
        return functional.softmax(scores + mask, dim=-1)


class TopKGathered(Variant):
    """The three best keys of each query are gathered, with their values."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        scores = self.scores(q, k)
        third = scores.topk(3, dim=-1).values[..., -1:]
        return scores.masked_fill(scores < third, -math.inf).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        best, which = self.scores(q, k).topk(3, -1)  # [batch, head, query, 3]
        wide = v[:, :, None].expand(-1, -1, TOKENS, -1, -1)
        chosen = wide.gather(3, which[..., None].expand(-1, -1, -1, -1, HEAD))
        return (best.softmax(-1)[..., None, :] @ chosen).squeeze(-2)


class Sparsemax(Weighed):
    """Martins and Astudillo: sort, running sum, threshold."""

    def weigh(self, scores: Tensor) -> Tensor:
        ordered = scores.sort(dim=-1, descending=True).values
        count = torch.arange(1, TOKENS + 1)
        total = ordered.cumsum(-1)
        inside = 1 + count * ordered > total
        size = inside.sum(-1, keepdim=True)
        threshold = (total.gather(-1, size - 1) - 1) / size
        return (scores - threshold).clamp(min=0)


class Entmax(Weighed):
    """Entmax 1.5 by bisection."""

    def weigh(self, scores: Tensor) -> Tensor:
        scores = scores / 2
        top = scores.amax(-1, keepdim=True)
        low, high = top - 1, top - TOKENS**-0.5
        for _ in range(25):
            middle = (low + high) / 2
            over = ((scores - middle).clamp(min=0) ** 2).sum(-1, keepdim=True) >= 1
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        weights = (scores - low).clamp(min=0) ** 2
        return weights / weights.sum(-1, keepdim=True)


class Relu(Weighed):
    def weigh(self, scores: Tensor) -> Tensor:
        return scores.relu() / TOKENS


class SquaredRelu(Weighed):
    """Primer and FLASH: squares of what is positive."""

    def weigh(self, scores: Tensor) -> Tensor:
        return functional.relu(scores).square() / TOKENS


class Sigmoid(Weighed):
    def weigh(self, scores: Tensor) -> Tensor:
        return (scores - math.log(TOKENS)).sigmoid()


class NoNormaliser(Weighed):
    """Scores as they are, over the number of keys: a map all the same, for nothing is summed first."""

    def weigh(self, scores: Tensor) -> Tensor:
        return scores / TOKENS


class Retention(Weighed):
    """A decay by distance and no softmax."""

    def weigh(self, scores: Tensor) -> Tensor:
        place = torch.arange(TOKENS)
        gap = place[:, None] - place[None]
        gamma = 1 - 2.0 ** (-1 - torch.arange(HEADS))
        decay = torch.where(gap >= 0, gamma[:, None, None] ** gap.clamp(min=0), 0.0)
        return scores * decay


class RetentionNormed(Retention):
    """The sum of absolute weights divides, at least one."""

    def weigh(self, scores: Tensor) -> Tensor:
        weights = super().weigh(scores)
        return weights / weights.detach().abs().sum(-1, keepdim=True).clamp(min=1)


class OffByOne(Weighed):
    """softmax1 by a zero logit that is cut off again."""

    def weigh(self, scores: Tensor) -> Tensor:
        return functional.pad(scores, (0, 1)).softmax(-1)[..., :-1]


class Sinks(Weighed):
    """A learned logit per head in front, its column dropped; the largest taken off first."""

    def extend(self) -> None:
        self.sinks = nn.Parameter(torch.randn(HEADS))

    def weigh(self, scores: Tensor) -> Tensor:
        sinks = self.sinks.reshape(1, -1, 1, 1).expand(len(scores), -1, scores.shape[-2], -1)
        joined = torch.cat([sinks, scores], dim=-1)
        joined = joined - joined.max(dim=-1, keepdim=True).values
        return functional.softmax(joined, dim=-1, dtype=joined.dtype)[..., 1:]


class SinkInSum(Weighed):
    """The sink is only in the sum below."""

    def extend(self) -> None:
        self.sinks = nn.Parameter(torch.randn(HEADS, 1, 1))

    def weigh(self, scores: Tensor) -> Tensor:
        top = torch.maximum(scores.amax(-1, keepdim=True), self.sinks)
        weights = (scores - top).exp()
        return weights / (weights.sum(-1, keepdim=True) + (self.sinks - top).exp())


class SinkGate(Variant):
    """A softmax without the sink, and a gate of the log sums on what it gives: no part of the map."""

    def extend(self) -> None:
        self.sinks = nn.Parameter(torch.randn(HEADS, 1))

    def gate(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.sigmoid(self.scores(q, k).logsumexp(-1) - self.sinks)[..., None]

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self.scores(q, k).softmax(-1) @ v) * self.gate(q, k)

    def gated(self, hidden: Tensor, update: Tensor) -> Tensor:
        q, k, _ = self.qkv(hidden)
        return update * self.gate(q, k)


class Hard(Weighed):
    """Straight through: one-hot forward, soft backward."""

    def weigh(self, scores: Tensor) -> Tensor:
        soft = scores.softmax(-1)
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        return hard - soft.detach() + soft


class HardOneHot(Weighed):
    """The same by one_hot."""

    def weigh(self, scores: Tensor) -> Tensor:
        soft = scores.softmax(-1)
        hard = functional.one_hot(soft.argmax(-1), TOKENS).to(soft.dtype)
        return hard + soft - soft.detach()


class GumbelEval(Weighed):
    """F.gumbel_softmax needs noise; here its expectation, hard."""

    def weigh(self, scores: Tensor) -> Tensor:
        soft = (scores / 0.7).softmax(-1)
        top = soft.max(-1, keepdim=True)[0]
        return torch.where(soft == top, torch.ones_like(soft), torch.zeros_like(soft)) * soft / top


class LearnedTemperature(Weighed):
    def extend(self) -> None:
        self.temperature = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)

    def weigh(self, scores: Tensor) -> Tensor:
        return (scores / self.temperature.exp()).softmax(-1)


class QueryTemperature(Variant):
    """Each query says how sharply it looks."""

    def extend(self) -> None:
        self.sharp = nn.Linear(HEAD, 1)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return (self.scores(q, k) * functional.softplus(self.sharp(q))).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class ForgetGate(Variant):
    """Forgetting transformer: scores plus sums of log gates between key and query."""

    def extend(self) -> None:
        self.gate = nn.Linear(HEAD, 1)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        gates = functional.logsigmoid(self.gate(k)).squeeze(-1).cumsum(-1)
        bias = gates[..., :, None] - gates[..., None, :]
        return (self.scores(q, k) + bias).masked_fill(~causal(), -math.inf).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class SigmoidBias(Variant):
    """Stick breaking: weights by products of what was left over."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        share = torch.sigmoid(self.scores(q, k)).masked_fill(~causal(), 0.0)
        left = torch.cumprod(torch.cat([torch.ones_like(share[..., :1]), 1 - share[..., :-1]], -1), -1)
        return share * left

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class CausalByIndex(Weighed):
    """The mask written by index_put."""

    def weigh(self, scores: Tensor) -> Tensor:
        i, j = torch.triu_indices(TOKENS, TOKENS, 1)
        scores = scores.clone()
        scores[:, :, i, j] = -math.inf
        return scores.softmax(-1)


class CausalByIndexRecorded(CausalByIndex):
    """The same behind a decision by .item(), so that the graph is a record of one run."""

    def weigh(self, scores: Tensor) -> Tensor:
        return super().weigh(scores if scores.mean().item() < 1e3 else -scores)


class NotANumber(Weighed):
    """A row that sees nothing gives NaN, which is put to zero."""

    def weigh(self, scores: Tensor) -> Tensor:
        strict = causal().tril(-1)
        return torch.nan_to_num(scores.masked_fill(~strict, -math.inf).softmax(-1))


class SparseMask(Weighed):
    """A mask kept as a sparse matrix."""

    def extend(self) -> None:
        self.register_buffer("mask", causal().float().to_sparse())

    def weigh(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.mask.to_dense() == 0, -1e9).softmax(-1)


class Complex(Variant):
    """Complex queries and keys: the real part of the product scores."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        a, b = (torch.view_as_complex(t.reshape(*t.shape[:-1], 2, 2)) for t in (q, k))
        return ((a @ b.mH).real * SCALE).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class ComplexAngles(Variant):
    """Magnitudes of complex products, complex(...) from two halves, einsum."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        a, b = (torch.complex(*t.chunk(2, -1)) for t in (q, k))
        return (torch.einsum("bhqd,bhkd->bhqk", a, b.conj()).abs() * SCALE).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class Gaussian(Variant):
    """Scores by distances, by the norms and the product."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        squares = q.square().sum(-1, keepdim=True) + k.square().sum(-1)[..., None, :]
        return (-(squares - 2 * q @ k.mT) / 4).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class Bilinear(Variant):
    """Luong's general score: q W kᵀ."""

    def extend(self) -> None:
        self.between = nn.Parameter(torch.randn(HEADS, HEAD, HEAD))

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return (torch.einsum("bhqd,hde,bhke->bhqk", q, self.between, k) * 0.2).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhqk,bhkd->bhqd", self.map(q, k), v)


class GateBetween(Variant):
    """A small network scores each pair of query and key (Set transformer, graph attention v2)."""

    def extend(self) -> None:
        self.pair = nn.Sequential(nn.Linear(2 * HEAD, 6), nn.LeakyReLU(), nn.Linear(6, 1))

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = torch.broadcast_tensors(q[..., :, None, :], k[..., None, :, :])
        return self.pair(torch.cat([q, k], -1)).squeeze(-1).mul(3).softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class GraphAttention(Variant):
    """GAT: a score of the query plus a score of the key, leaky, masked to edges."""

    def extend(self) -> None:
        self.of_query, self.of_key = nn.Linear(HEAD, 1), nn.Linear(HEAD, 1)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        scores = functional.leaky_relu(self.of_query(q) + self.of_key(k).transpose(-1, -2), 0.2)
        near = (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).abs() < 3
        return torch.where(near, 3 * scores, torch.tensor(-9e15)).softmax(dim=-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


MASKED: dict[str, Expected] = {
    "alibi": Expected(Alibi, whole()),
    "t5": Expected(T5Bias, whole()),
    "mlp_bias": Expected(MlpBias, whole()),
    "topk": Expected(TopK, whole()),
    "topk-scattered": Expected(TopKScattered, whole()),
    "topk-opened": Expected(TopKScatteredInPlace, whole()),
    "topk-gathered": Expected(TopKGathered, whole()),
    "sparsemax": Expected(Sparsemax, whole()),
    "entmax": Expected(Entmax, whole()),
    "relu": Expected(Relu, whole(), normaliser="none"),
    "relu-squared": Expected(SquaredRelu, whole(), normaliser="none"),
    "sigmoid": Expected(Sigmoid, whole(), normaliser="sigmoid"),
    "no_normaliser": Expected(NoNormaliser, whole(), normaliser="none"),
    "retention": Expected(Retention, whole(), normaliser="none"),
    "retention-normed": Expected(RetentionNormed, whole(), normaliser="none"),
    "off_by_one": Expected(OffByOne, whole()),
    "sinks": Expected(Sinks, whole()),
    "sink_in_sum": Expected(SinkInSum, whole(), normaliser="none"),
    "sink_gate": Expected(SinkGate, whole()),
    "hard": Expected(Hard, whole()),
    "hard-one_hot": Expected(HardOneHot, whole()),
    "hard-where": Expected(GumbelEval, whole()),
    "temperature": Expected(LearnedTemperature, whole()),
    "temperature-query": Expected(QueryTemperature, whole()),
    "stick_breaking": Expected(SigmoidBias, whole(), normaliser="sigmoid"),
    "causal-index_put": Expected(CausalByIndex, whole()),
    "causal-index_put_recorded": Expected(CausalByIndexRecorded, whole()),
    "nan_to_num": Expected(NotANumber, whole()),
    "sparse_mask": Expected(SparseMask, whole()),
    "complex": Expected(Complex, whole()),
    "complex-magnitude": Expected(ComplexAngles, whole()),
    "gaussian": Expected(Gaussian, whole()),
    "bilinear": Expected(Bilinear, whole()),
    "pairs": Expected(GateBetween, whole()),
    "graph": Expected(GraphAttention, whole()),
}
