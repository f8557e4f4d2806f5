"""Spellings of the normaliser, of the product with the values, and of what is projected and shared."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo.spec import Builder, floats, rows

from spellings.base import HEAD, HEADS, TOKENS, WIDTH, Spelling, case, merge, site, split
from spellings.scores import SCALE, Plain


class ByFunction(Plain):
    def normalise(self, scores: Tensor) -> Tensor:
        return functional.softmax(scores, dim=-1)


class ByModule(Plain):
    """nn.Softmax, then a dropout that does nothing in eval mode."""

    def extend(self) -> None:
        self.softmax, self.dropout = nn.Softmax(dim=-1), nn.Dropout(0.5)

    def normalise(self, scores: Tensor) -> Tensor:
        weights: Tensor = self.dropout(self.softmax(scores))
        return weights


class ByTorch(Plain):
    def normalise(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores, 3)


class ByLog(Plain):
    def normalise(self, scores: Tensor) -> Tensor:
        return functional.log_softmax(scores, dim=-1).exp()


class ByHand(Plain):
    """exp over its sum."""

    def normalise(self, scores: Tensor) -> Tensor:
        weights = torch.exp(scores)
        return weights / weights.sum(-1, keepdim=True)


class ByHandStable(Plain):
    """exp over its sum, the largest score taken off first."""

    def normalise(self, scores: Tensor) -> Tensor:
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-9)


class DividedLate(Plain):
    """The sum of the weights is divided out after the product with the values."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        weights = self.scores(q, k).exp()
        total = weights.sum(-1, keepdim=True)
        return merge((weights @ v) / total), weights / total


class OffByOne(Plain):
    """softmax1: exp over one plus its sum."""

    def normalise(self, scores: Tensor) -> Tensor:
        weights = scores.exp()
        return weights / (1 + weights.sum(-1, keepdim=True))


class Sigmoid(Plain):
    """Sigmoid attention, with its bias of minus log n."""

    def normalise(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores - 1.8)


class Relu(Plain):
    """ReLU over the number of keys, as in vision transformers without softmax."""

    def normalise(self, scores: Tensor) -> Tensor:
        return functional.relu(scores) / TOKENS


class Float32(Plain):
    """bf16 scores, a float32 softmax, bf16 weights."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (t.bfloat16() for t in self.qkv(x))
        scores = q @ k.transpose(-1, -2) * SCALE
        weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        return merge(weights @ v).float(), weights.float()


class Elementwise(Plain):
    """(weights * v).sum over the keys."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        weights = self.scores(q, k).softmax(-1)
        return merge((weights[..., None] * v[:, :, None]).sum(3)), weights


class ElementwiseScores(Plain):
    """(q * k).sum over the features, and the values as above."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        weights = ((q[:, :, :, None] * k[:, :, None]).sum(-1) * SCALE).softmax(-1)
        return merge((weights.unsqueeze(-1) * v.unsqueeze(2)).sum(dim=-2)), weights


class Tensordot(nn.Module):
    """No batch: scores and values by tensordot, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.tensordot(self.q(x), self.k(x), dims=([1], [1])) * SCALE
        weights = scores.softmax(-1)
        return torch.tensordot(weights, self.v(x), dims=([1], [0])), weights[None, None]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.attend(x)[0][0])
        return logits

    def maps(self, x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [self.attend(x)[1]]


class Packed(Spelling):
    """One projection for q, k and v; ``how`` takes them apart."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def extend(self) -> None:
        self.packed = nn.Linear(WIDTH, 3 * WIDTH)

    def apart(self, x: Tensor) -> tuple[Tensor, ...]:
        packed = self.packed(x)
        if self.how == "chunk":
            return tuple(split(part) for part in packed.chunk(3, dim=-1))
        if self.how == "split":
            return tuple(split(part) for part in packed.split(WIDTH, dim=-1))
        if self.how == "unbind":
            return tuple(packed.view(*x.shape[:2], 3, HEADS, HEAD).permute(2, 0, 3, 1, 4).unbind(0))
        # each head's q, k and v lie together
        return tuple(packed.view(*x.shape[:2], HEADS, 3 * HEAD).transpose(1, 2).split(HEAD, -1))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.apart(x)
        weights = (q @ k.transpose(-1, -2) * SCALE).softmax(-1)
        return merge(weights @ v), weights


class Fused(Plain):
    """scaled_dot_product_attention; ``how`` sets its options."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("bias", floats(HEADS, TOKENS, TOKENS, seed=11))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
        scores = q @ k.transpose(-1, -2) * (0.7 if self.how == "scale" else SCALE)
        if self.how == "causal":
            update = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return merge(update), scores.masked_fill(~causal, float("-inf")).softmax(-1)
        if self.how == "bool":
            update = functional.scaled_dot_product_attention(q, k, v, attn_mask=causal[None, None])
            return merge(update), scores.masked_fill(~causal, float("-inf")).softmax(-1)
        if self.how == "float":
            bias = self.bias
            update = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # type: ignore[arg-type]
            return merge(update), (scores + bias).softmax(-1)
        scale = 0.7 if self.how == "scale" else None
        return merge(functional.scaled_dot_product_attention(q, k, v, scale=scale)), scores.softmax(-1)


class Grouped(Spelling):
    """Four query heads over two (grouped) or one (multi-query) key and value heads."""

    def __init__(self, how: str, groups: int = 2) -> None:
        self.how, self.groups = how, groups
        super().__init__()

    def extend(self) -> None:
        self.k, self.v = (nn.Linear(WIDTH, self.groups * 3) for _ in range(2))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = split(self.q(x), 4), split(self.k(x), self.groups), split(self.v(x), self.groups)
        times = 4 // self.groups
        if self.how == "fused":
            update = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            keys = k.repeat_interleave(times, 1)
            return merge(update), (q @ keys.transpose(-1, -2) * 3**-0.5).softmax(-1)
        if self.how == "repeat":
            k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
        elif self.how == "expand":
            k, v = (t[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2) for t in (k, v))
        elif self.how == "group axis":  # the group is an axis of its own
            grouped = q.unflatten(1, (self.groups, times))
            weights = (grouped @ k[:, :, None].transpose(-1, -2)).softmax(-1)
            return merge((weights @ v[:, :, None]).flatten(1, 2)), weights.flatten(1, 2)
        weights = (q @ k.transpose(-1, -2)).softmax(-1)  # one head of keys broadcasts
        return merge(weights @ v), weights


class PerHead(Plain):
    """A Python loop over heads: as many attentions, of one head each."""

    def attend_each(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        updates, maps = [], []
        for q, k, v in zip(*(f(x).chunk(HEADS, -1) for f in (self.q, self.k, self.v)), strict=True):
            maps.append((q @ k.transpose(-1, -2) * SCALE).softmax(-1)[:, None])
            updates.append(maps[-1][:, 0] @ v)
        return torch.cat(updates, -1), maps

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        update, maps = self.attend_each(x)
        return update, maps[0]

    def maps(self, x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return self.attend_each(self.embed(x))[1]


class NoValues(Plain):
    """The weights meet the tokens themselves, one head."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = (x @ x.transpose(1, 2) * 0.3).softmax(-1)
        return weights @ x, weights[:, None]


class Twice(Plain):
    """One module, called twice: two attentions."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        for _ in range(2):
            hidden = hidden + self.out(self.attend(hidden)[0])
        logits: Tensor = self.head(hidden[:, 0])
        return logits

    def maps(self, x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            hidden = self.embed(x)
            update, first = self.attend(hidden)
            return [first, self.attend(hidden + self.out(update))[1]]


class Sequences(Plain):
    """[token, batch, width] throughout, as in the first transformers; the input too."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size, batch, _ = x.shape
        q, k, v = (f(x).view(size, batch * HEADS, HEAD).transpose(0, 1) for f in (self.q, self.k, self.v))
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        update = torch.bmm(weights, v).transpose(0, 1).reshape(size, batch, WIDTH)
        return update, weights.view(batch, HEADS, size, size)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        logits: Tensor = self.head((hidden + self.attend(hidden)[0])[0])
        return logits


WEIGHTS: dict[str, Builder] = {
    "softmax-functional": case(ByFunction),
    "softmax-module": case(ByModule),
    "softmax-torch": case(ByTorch),
    "softmax-log": case(ByLog),
    "softmax-by_hand": case(ByHand),
    "softmax-by_hand_stable": case(ByHandStable),
    "softmax-divided_late": case(DividedLate),
    "softmax-off_by_one": case(OffByOne),
    "sigmoid": case(Sigmoid),
    "relu": case(Relu),
    "float32": case(Float32),
    "elementwise": case(Elementwise),
    "elementwise-scores": case(ElementwiseScores),
    "tensordot": case(
        Tensordot,
        (site(heads=1),),
        inputs={"x": floats(TOKENS, WIDTH, seed=7)},
        readout=rows(("x", (0,)), batch=1),
        batch_axis={"x": -1},
    ),
    "packed-chunk": case(lambda: Packed("chunk")),
    "packed-split": case(lambda: Packed("split")),
    "packed-unbind": case(lambda: Packed("unbind")),
    "packed-per_head": case(lambda: Packed("per head")),
    "fused": case(lambda: Fused("plain")),
    "fused-causal": case(lambda: Fused("causal")),
    "fused-bool": case(lambda: Fused("bool")),
    "fused-float": case(lambda: Fused("float")),
    "fused-scale": case(lambda: Fused("scale")),
    "grouped-repeat": case(lambda: Grouped("repeat"), (site(heads=4),)),
    "grouped-expand": case(lambda: Grouped("expand"), (site(heads=4),)),
    "grouped-axis": case(lambda: Grouped("group axis"), (site(heads=4),)),
    "grouped-fused": case(lambda: Grouped("fused"), (site(heads=4),)),
    "multi_query": case(lambda: Grouped("broadcast", groups=1), (site(heads=4),)),
    "per_head_loop": case(PerHead, (site(heads=1),) * HEADS),
    "no_values": case(NoValues, (site(heads=1),)),
    "twice": case(Twice, (site(), site()), marks=("shared",)),
    "seq_first": case(Sequences, inputs={"x": floats(TOKENS, 2, WIDTH, seed=7)}, batch_axis={"x": 1}),
}
