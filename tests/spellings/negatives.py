"""Softmaxes that are no attention, each beside one plain attention; the census must say what they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo.spec import EVERY, Builder, rows

from spellings.base import TOKENS, WIDTH, case, merge
from spellings.scores import Plain


class Negative(Plain):
    """A plain attention, and ``after`` it the softmax that is none."""

    def after(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        hidden = hidden + self.out(self.attend(hidden)[0])
        logits: Tensor = self.head(self.after(hidden)[:, 0])
        return logits


class Classes(Plain):
    """The output is a distribution over the classes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(-1)


class LogClasses(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return functional.log_softmax(super().forward(x), dim=-1)


class Span(Plain):
    """The output is a distribution over the tokens (where an answer starts)."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        scores: Tensor = self.head(hidden + self.out(self.attend(hidden)[0]))[..., 0]
        return scores.softmax(-1)


class Router(Negative):
    """Two of four experts by token, weighted by a softmax."""

    def extend(self) -> None:
        self.gate = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def after(self, hidden: Tensor) -> Tensor:
        chosen, which = self.gate(hidden).softmax(-1).topk(2, dim=-1)
        weights = torch.zeros(*hidden.shape[:2], 4).scatter(-1, which, chosen)
        return sum(weights[..., i : i + 1] * expert(hidden) for i, expert in enumerate(self.experts))


class SoftExperts(Router):
    """All experts, by a product of the weights with the stack of their outputs."""

    def after(self, hidden: Tensor) -> Tensor:
        weights = self.gate(hidden).softmax(-1)  # [batch, token, expert]
        stack = torch.stack([expert(hidden) for expert in self.experts], 2)
        return torch.einsum("bte,btec->btc", weights, stack)


class Channels(Negative):
    """XCA: a map between features, of tokens summed out."""

    def after(self, hidden: Tensor) -> Tensor:
        q, k, v = (t.transpose(-1, -2) for t in self.qkv(hidden))  # [batch, head, dim, token]
        weights = (
            functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-1, -2)
        ).softmax(-1)
        return merge((weights @ v).transpose(-1, -2))


class FusedChannels(Negative):
    """The same in the kernel of attention: tokens lie where it has the features."""

    def after(self, hidden: Tensor) -> Tensor:
        q, k, v = (t.transpose(-1, -2) for t in self.qkv(hidden))
        return merge(functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2))


class Gate(Negative):
    """A softmax over features gates them."""

    def after(self, hidden: Tensor) -> Tensor:
        return hidden * self.q(hidden).softmax(-1)


class Excite(Negative):
    """Squeeze and excite: pooled tokens, a softmax over channels, all tokens scaled alike."""

    def after(self, hidden: Tensor) -> Tensor:
        return hidden * self.q(hidden.mean(1, keepdim=True)).softmax(-1)


class Linear(Negative):
    """Efficient attention: softmax over features of q, over tokens of k; no map between tokens."""

    def after(self, hidden: Tensor) -> Tensor:
        q, k, v = self.qkv(hidden)
        context = k.softmax(-2).transpose(-1, -2) @ v  # [batch, head, dim, dim]
        return merge(q.softmax(-1) @ context)


class Codebook(Negative):
    """Soft assignment to learned codes."""

    def extend(self) -> None:
        self.codes = nn.Parameter(torch.randn(5, WIDTH))

    def after(self, hidden: Tensor) -> Tensor:
        return (hidden @ self.codes.T).softmax(-1) @ self.codes


class Points(Negative):
    """Deformable attention: a softmax over three sampled places per query."""

    def extend(self) -> None:
        self.offsets, self.weigh = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)

    def after(self, hidden: Tensor) -> Tensor:
        places = torch.linspace(-0.8, 0.8, TOKENS)[None, :, None] + 0.3 * torch.tanh(self.offsets(hidden))
        grid = torch.stack([places, torch.zeros_like(places)], -1)  # [batch, token, point, 2]
        image = self.v(hidden).transpose(1, 2)[:, :, None]  # [batch, width, 1, token]
        sampled = functional.grid_sample(image, grid, align_corners=False)  # [batch, width, token, point]
        weights = self.weigh(hidden).softmax(-1)
        return hidden + (sampled * weights[:, None]).sum(-1).transpose(1, 2)


class Layers(Negative):
    """A learned softmax over layers mixes their states, as ELMo does."""

    def extend(self) -> None:
        self.mix = nn.Parameter(torch.randn(3))

    def after(self, hidden: Tensor) -> Tensor:
        states = torch.stack([hidden, torch.tanh(hidden), self.q(hidden)])
        return (self.mix.softmax(0)[:, None, None, None] * states).sum(0)


OUTPUT = {"output": 1}
NEGATIVES: dict[str, Builder] = {
    "output-classes": case(Classes, not_attention=OUTPUT),
    "output-log_classes": case(LogClasses, not_attention=OUTPUT),
    "output-span": case(Span, not_attention=OUTPUT, readout=rows(("x", EVERY))),
    "router": case(Router, not_attention={"router": 1}),
    "router-soft": case(SoftExperts, not_attention={"router|gat|expert": 1}),
    "channels": case(Channels, not_attention={"channel": 1}),
    "fused channels": case(FusedChannels, not_attention={"channel": 1}),
    "gate": case(Gate, not_attention={"gat|feature|channel": 1}),
    "excite": case(Excite, not_attention={"gat|feature|channel": 1}, readout=()),
    "linear": case(Linear, not_attention={"linear": 2}, marks=("linear",)),
    "codebook": case(Codebook, not_attention={"*": 1}),
    "points": case(Points, not_attention={"sampl|point": 1}, readout=()),
    "layers": case(Layers, not_attention={"*": 1}),
}
