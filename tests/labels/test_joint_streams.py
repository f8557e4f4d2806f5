"""Two streams in one attention: side by side and split again, keys of both, adapters, conditions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxplain

BATCH, IMAGE, TEXT, WIDTH = 2, 5, 3, 8


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, 4)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)


class Streams(nn.Module):
    """x and c, each with layers of its own; the score reads the first token of x."""

    def __init__(self) -> None:
        super().__init__()
        self.of_x, self.of_c = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out_x, self.out_c, self.wide = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.prompt = nn.Parameter(torch.randn(2, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def join(self, x: Tensor, c: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        logits: Tensor = self.head(self.join(x, c)[:, 0])
        return logits


class Joint(Streams):
    """SD3: queries, keys and values of both side by side, split again for output layers of their own."""

    def block(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(self.of_c(c).chunk(3, -1), self.of_x(x).chunk(3, -1), strict=True)
        both = attention(*(torch.cat(pair, 1) for pair in parts))
        of_c, of_x = both.split([c.shape[1], x.shape[1]], 1)
        return x + self.out_x(of_x), c + self.out_c(of_c)

    def join(self, x: Tensor, c: Tensor) -> Tensor:
        x, c = self.block(x, c)
        return self.block(x, c)[0]


class Single(Streams):
    """Flux: one stream in the end, layers for both, a network in parallel."""

    def join(self, x: Tensor, c: Tensor) -> Tensor:
        both = torch.cat([self.wide(c), self.wide(x)], 1)
        for _ in range(2):
            update = attention(*self.of_x(both).chunk(3, -1)) + self.out_c(both).relu()
            both = both + self.out_x(update)
        return both[:, c.shape[1] :]


class Mixed(Streams):
    """Keys of both, queries of one."""

    def join(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.wide(x)
        q, k, v = self.of_x(x).chunk(3, -1)
        _, ck, cv = self.of_c(c).chunk(3, -1)
        return x + self.out_x(attention(q, torch.cat([k, ck], 1), torch.cat([v, cv], 1)))


class Condition(Streams):
    """Cross attention to one vector, after self attention."""

    def join(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.wide(x)
        x = x + self.out_x(attention(*self.of_x(x).chunk(3, -1)))
        q, k, v = self.of_x(x)[..., :WIDTH], *self.of_c(c[:, :1]).chunk(3, -1)[1:]  # type: ignore[misc]
        return x + self.out_c(attention(q, k, v))


class Modulated(Streams):
    """A vector scales and shifts (adaLN), and is no token that attends."""

    def join(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.of_c(c.mean(1)).unsqueeze(1).chunk(3, -1)
        x = self.wide(x)
        return x + gate * self.out_x(attention(*self.of_x(x * (1 + scale) + shift).chunk(3, -1)))


class Adapter(Streams):
    """IP-Adapter: a second cross attention of the same queries, scaled and added before the output layer."""

    def join(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.wide(x)
        q = self.of_x(x)[..., :WIDTH]
        k, v = self.of_c(c).chunk(3, -1)[1:]
        pk, pv = self.of_c(self.prompt.expand(len(x), -1, -1)).chunk(3, -1)[1:]
        return x + self.out_x(attention(q, k, v) + self.scale * attention(q, pk, pv))


class Resampler(Streams):
    """Flamingo: latents read c and themselves, then x reads the latents behind a tanh gate."""

    def join(self, x: Tensor, c: Tensor) -> Tensor:
        latents = self.prompt.expand(len(x), -1, -1)
        for _ in range(2):
            q = self.of_c(latents)[..., :WIDTH]
            k, v = self.of_c(torch.cat([c, latents], 1)).chunk(3, -1)[1:]
            latents = latents + self.out_c(attention(q, k, v))
        x = self.wide(x)
        k, v = self.of_x(latents).chunk(3, -1)[1:]
        return x + self.scale.tanh() * self.out_x(attention(self.of_x(x)[..., :WIDTH], k, v))


class Parallel(Streams):
    """Self and cross attention beside each other and a network, all of the same state."""

    def join(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.wide(x)
        q, k, v = self.of_x(x).chunk(3, -1)
        ck, cv = self.of_c(c).chunk(3, -1)[1:]
        return x + self.out_x(attention(q, k, v)) + self.out_c(attention(q, ck, cv)) + self.wide(x).relu()


class Prefix(Streams):
    """Learned keys and values come first, a different pair for each head."""

    def join(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.wide(x)
        q, k, v = self.of_x(x).chunk(3, -1)
        front = self.prompt[None].expand(len(x), -1, -1)
        x = x + self.out_x(attention(q, torch.cat([front, k], 1), torch.cat([front, v], 1)))
        ck, cv = self.of_c(c).chunk(3, -1)[1:]
        return x + self.out_c(attention(self.of_x(x)[..., :WIDTH], ck, cv))


CASES: dict[type[Streams], list[tuple[str, int, int]]] = {
    Joint: [("self", 8, 8)] * 2,
    Single: [("self", 8, 8)] * 2,
    Mixed: [("self", 5, 8)],
    Condition: [("self", 5, 5), ("encoder_decoder", 5, 1)],
    Modulated: [("self", 5, 5)],
    Adapter: [("encoder_decoder", 5, 3), ("encoder_decoder", 5, 2)],
    Resampler: [("self", 2, 5), ("self", 2, 5), ("encoder_decoder", 5, 2)],
    Parallel: [("self", 5, 5), ("encoder_decoder", 5, 3)],
    Prefix: [("self", 5, 7), ("encoder_decoder", 5, 3)],
}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(BATCH, IMAGE, WIDTH, generator=generator), torch.randn(
        BATCH, TEXT, WIDTH, generator=generator
    )


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_two_streams(kind: type[Streams]) -> None:
    torch.manual_seed(0)
    model, inputs = kind().eval(), data()
    traced: Any = fxplain.trace(model, inputs)
    assert not [entry for entry in traced.census if entry.role == "unknown"]
    assert [(a.kind, a.queries.size, a.keys.size) for a in traced.attentions] == CASES[kind]
    result = traced.explain(inputs, target=1)
    assert float(result.relevance["x"].sum()) > 0 or kind in (Adapter, Resampler)
    if kind is not Modulated:
        assert float(result.relevance["c"].sum()) > 0
    for sample in range(BATCH):
        alone = fxplain.explain(model, tuple(t[sample : sample + 1] for t in inputs), target=1)
        for name, values in alone.relevance.items():
            torch.testing.assert_close(values[0], result.relevance[name][sample], rtol=1e-4, atol=1e-7)
