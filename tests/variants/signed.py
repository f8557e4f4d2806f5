"""Maps that are sums and differences of maps, mixed between heads, gated, or behind compressed keys."""

from __future__ import annotations

import torch
from spellings.base import HEAD, HEADS, TOKENS, WIDTH, merge, split
from torch import Tensor, nn
from torch.nn import functional

from variants.base import SCALE, Expected, Variant, whole


class Differential(Variant):
    """The difference of two softmaxes multiplies the values."""

    def extend(self) -> None:
        self.q2, self.k2 = nn.Linear(HEAD, HEAD), nn.Linear(HEAD, HEAD)
        self.share = nn.Parameter(torch.tensor(0.6))

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        other = self.scores(3 * self.q2(q), self.k2(k)).softmax(-1)
        return self.scores(q, k).softmax(-1) - self.share * other

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class DifferentialPairs(Differential):
    """Both softmaxes in one tensor, as the authors write it: heads in pairs, then one less the other."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        qs, ks = torch.stack([q, 3 * self.q2(q)], 2), torch.stack([k, self.k2(k)], 2)
        weights = self.scores(qs.flatten(1, 2), ks.flatten(1, 2)).softmax(-1)
        weights = weights.view(len(q), HEADS, 2, TOKENS, TOKENS)
        return (weights[:, :, 0] - self.share * weights[:, :, 1]) @ v


class DifferentialOutputs(Differential):
    """Two attentions, and the difference of what they give: their maps' difference is the map."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        one = functional.scaled_dot_product_attention(q, k, v, scale=SCALE)
        other = functional.scaled_dot_product_attention(3 * self.q2(q), self.k2(k), v, scale=SCALE)
        return one - self.share * other


class DifferentialOutputsWritten(Differential):
    """The same with softmaxes written out."""

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        one = self.scores(q, k).softmax(-1) @ v
        return one - self.share * (self.scores(3 * self.q2(q), self.k2(k)).softmax(-1) @ v)


class Mixture(Differential):
    """A mixture of two softmaxes by a gate of the query."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        gate = q.mean(-1, keepdim=True).sigmoid()
        other = self.scores(3 * self.q2(q), self.k2(k)).softmax(-1)
        return torch.lerp(self.scores(q, k).softmax(-1), other, gate)


class ReWeighted(Differential):
    """Residual attention: the scores of one are added to those of the next."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return (self.scores(3 * self.q2(q), self.k2(k)) + self.scores(q, k)).softmax(-1)


class LessMean(Variant):
    """Centred attention: the uniform map is taken off."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        weights = self.scores(q, k).softmax(-1)
        return weights - weights.mean(-1, keepdim=True)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class PlusIdentity(Variant):
    """The identity is part of the map."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        return 0.5 * self.scores(q, k).softmax(-1) + 0.5 * torch.eye(TOKENS)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class NormedMap(Variant):
    """A layer or batch norm of the map over its heads (DeepViT)."""

    def extend(self) -> None:
        self.mix = nn.Parameter(torch.randn(HEADS, HEADS))
        self.norm = nn.LayerNorm(HEADS)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        weights = torch.einsum("bhij,hg->bgij", self.scores(q, k).softmax(-1), self.mix)
        normed: Tensor = self.norm(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class Talking(Variant):
    """Heads mixed before and after the softmax, by einsum."""

    def extend(self) -> None:
        self.before, self.after = nn.Parameter(torch.randn(2, HEADS, HEADS)).unbind(0)
        self.before, self.after = nn.Parameter(self.before), nn.Parameter(self.after)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        scores = torch.einsum("bhij,hg->bgij", self.scores(q, k), self.before)
        return torch.einsum("bgij,gh->bhij", scores.softmax(-1), self.after)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class TalkingConvolved(Variant):
    """Multi-token attention: a small window slides over the scores before the softmax."""

    def extend(self) -> None:
        self.slide = nn.Conv2d(HEADS, HEADS, 3, padding=1, groups=HEADS)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        slid: Tensor = self.slide(self.scores(q, k))
        return slid.softmax(-1)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.map(q, k) @ v


class TalkingPadded(TalkingConvolved):
    """The window slides over scores that were padded before, as for a causal one."""

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        padded = nn.functional.pad(self.scores(q, k), (1, 1, 2, 0))
        slid: Tensor = nn.functional.conv2d(padded, self.slide.weight, self.slide.bias, groups=HEADS)
        return slid.softmax(-1)


class HeadWeights(Variant):
    """A learned number scales each head's output; the reference has it in its map."""

    def extend(self) -> None:
        self.scale = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)

    def spell(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.scores(q, k).softmax(-1) @ (v * self.scale)

    def dense(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weights, v = super().dense(x)
        return hidden, weights, v * self.scale


class Gated(Variant):
    """A gate of the query on the output, as in gated attention units: the map stays the softmax's."""

    def extend(self) -> None:
        self.gate = nn.Linear(WIDTH, WIDTH)

    def attend(self, hidden: Tensor) -> Tensor:
        return super().attend(hidden) * self.gate(hidden).sigmoid()

    def gated(self, hidden: Tensor, update: Tensor) -> Tensor:
        return update * split(self.gate(hidden)).sigmoid()


class GatedHead(Variant):
    """One number a head, by the query."""

    def extend(self) -> None:
        self.gate = nn.Linear(WIDTH, HEADS)

    def attend(self, hidden: Tensor) -> Tensor:
        return merge(self.gated(hidden, self.spell(*self.qkv(hidden))))

    def gated(self, hidden: Tensor, update: Tensor) -> Tensor:
        return update * split(self.gate(hidden)).sigmoid()


class Latent(Variant):
    """Multi-head latent attention: keys and values from one small code, rotary keys shared by the heads."""

    def extend(self) -> None:
        self.down = nn.Linear(WIDTH, 5)
        self.up_k, self.up_v = nn.Linear(5, WIDTH), nn.Linear(5, WIDTH, bias=False)
        self.turn_q, self.turn_k = nn.Linear(WIDTH, HEADS * 2), nn.Linear(WIDTH, 2)

    def qkv(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = self.down(hidden)
        shared = self.turn_k(hidden)[:, None].expand(-1, HEADS, -1, -1)
        q = torch.cat([split(self.q(hidden)), split(self.turn_q(hidden))], -1)
        return q, torch.cat([split(self.up_k(code)) * 2, shared], -1), split(self.up_v(code))


class LatentAbsorbed(Latent):
    """The same at inference: queries are brought into the code's space, which all heads share."""

    def attend(self, hidden: Tensor) -> Tensor:
        code = self.down(hidden)
        up_k, up_v = (f.weight.view(HEADS, HEAD, 5) for f in (self.up_k, self.up_v))
        q = split(self.q(hidden))
        of_code = torch.einsum("bhqd,hdc->bhqc", q, 2 * up_k) @ code[:, None].mT
        of_bias = torch.einsum("bhqd,hd->bhq", q, 2 * self.up_k.bias.view(HEADS, HEAD))[..., None]
        of_place = split(self.turn_q(hidden)) @ self.turn_k(hidden)[:, None].mT
        weights = ((of_code + of_bias + of_place) * SCALE).softmax(-1)
        mixed = torch.einsum("bhqk,bkc->bhqc", weights, code)
        out = torch.einsum("bhqc,hdc->bhqd", mixed, up_v)
        return merge(out)


class OneKeyHead(Variant):
    """Multi-query: one head of keys and values, by einsum."""

    def qkv(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.k(hidden)[..., :HEAD], self.v(hidden)[..., :HEAD]
        return (
            split(self.q(hidden)),
            k[:, None].expand(-1, HEADS, -1, -1),
            v[:, None].expand(-1, HEADS, -1, -1),
        )

    def attend(self, hidden: Tensor) -> Tensor:
        q, k, v = self.q(hidden), self.k(hidden)[..., :HEAD], self.v(hidden)[..., :HEAD]
        q = q.view(*q.shape[:2], HEADS, HEAD)
        weights = torch.einsum("bqhd,bkd->bhqk", q, k).mul(SCALE).softmax(-1)
        return torch.einsum("bhqk,bkd->bqhd", weights, v).flatten(2)


class SharedValues(Variant):
    """All heads weigh the same full-width values, and the results are averaged."""

    def attend(self, hidden: Tensor) -> Tensor:
        q, k, _ = self.qkv(hidden)
        return self.scores(q, k).softmax(-1).mean(1) @ self.v(hidden)

    def dense(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.embed(x)
        q, k, _ = self.qkv(hidden)
        return hidden, self.scores(q, k).softmax(-1).mean(1, keepdim=True), self.v(hidden)[:, None]


class Cascade(Variant):
    """Each head's input gets the last head's output (EfficientViT): heads in sequence; no dense reference."""


SIGNED: dict[str, Expected] = {
    "differential": Expected(Differential, whole()),
    "differential-pairs": Expected(DifferentialPairs, whole()),
    "differential-outputs": Expected(DifferentialOutputs, whole()),
    "differential-outputs_written": Expected(DifferentialOutputsWritten, whole()),
    "mixture": Expected(Mixture, whole()),
    "scores_added": Expected(ReWeighted, whole()),
    "less_mean": Expected(LessMean, whole()),
    "plus_identity": Expected(PlusIdentity, whole()),
    "normed_map": Expected(NormedMap, whole()),
    "talking": Expected(Talking, whole()),
    "talking-window": Expected(TalkingConvolved, whole()),
    "talking-window-padded": Expected(TalkingPadded, whole()),
    "head_weights": Expected(HeadWeights, whole()),
    "gated": Expected(Gated, whole()),
    "gated-head": Expected(GatedHead, whole()),
    "latent": Expected(Latent, whole()),
    "latent-absorbed": Expected(LatentAbsorbed, whole()),
    "multi_query": Expected(OneKeyHead, whole()),
    "values_shared": Expected(SharedValues, whole(heads=1)),
}
