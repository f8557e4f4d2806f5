"""Spellings of who attends to whom: sinks, prefixes, windows, learned queries, two streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo.spec import Builder, floats, rows

from spellings.base import HEAD, HEADS, OTHERS, TOKENS, WIDTH, case, merge, own_maps, site, split
from spellings.scores import Plain


class SinkLogit(Plain):
    """A learned logit per head joins the scores and leaves the weights."""

    def extend(self) -> None:
        self.sinks = nn.Parameter(torch.randn(HEADS))

    def normalise(self, scores: Tensor) -> Tensor:
        sinks = self.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]


class ExtraKeys(Plain):
    """Keys and values that belong to no token of the input: learned ones, or zeros."""

    def __init__(self, learned: int = 1, zeros: int = 0) -> None:
        self.learned, self.zeros = learned, zeros
        super().__init__()

    def extend(self) -> None:
        self.extra = nn.Parameter(torch.randn(2, 1, HEADS, self.learned, HEAD))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        zeros = torch.zeros(x.shape[0], HEADS, self.zeros, HEAD)
        k, v = (
            torch.cat([own, extra.expand(x.shape[0], -1, -1, -1), zeros], 2)
            for own, extra in zip((k, v), self.extra, strict=True)
        )
        weights = self.scores(q, k).softmax(-1)
        return merge(weights @ v), weights[..., :TOKENS]


class Cached(Plain):
    """Keys and values of an earlier run come first."""

    def forward(self, x: Tensor, past_k: Tensor, past_v: Tensor) -> Tensor:
        hidden = self.embed(x)
        q, k, v = self.qkv(hidden)
        weights = self.scores(q, torch.cat([past_k, k], 2)).softmax(-1)
        update = merge(weights @ torch.cat([past_v, v], 2))
        logits: Tensor = self.head((hidden + self.out(update))[:, 0])
        return logits

    def maps(self, x: Tensor, past_k: Tensor, past_v: Tensor) -> list[Tensor]:
        with torch.no_grad():
            q, k, _ = self.qkv(self.embed(x))
            return [self.scores(q, torch.cat([past_k, k], 2)).softmax(-1)]


def spread(weights: Tensor, queries: Tensor, keys: Tensor, size: int) -> Tensor:
    """Maps of windows [batch, window, head, q, k] -> the map over all tokens [batch, head, size, size]."""
    full = torch.zeros(weights.shape[0], weights.shape[2], size, size)
    for window in range(weights.shape[1]):
        full[:, :, queries[window][:, None], keys[window][None]] += weights[:, window]
    return full


class Chunked(Plain):
    """Windows of three tokens in the batch axis."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.shape[0]
        q, k, v = self.qkv(x.reshape(batch * 2, 3, WIDTH))
        weights = self.scores(q, k).softmax(-1)
        update = merge(weights @ v).reshape(batch, TOKENS, WIDTH)
        places = torch.arange(TOKENS).view(2, 3)
        return update, spread(weights.view(batch, 2, HEADS, 3, 3), places, places, TOKENS)


class Neighbours(Plain):
    """Each chunk of two tokens also sees the chunks before and after it: overlapping keys, by unfold."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.shape[0]
        q, k, v = self.qkv(x)  # [batch, head, token, dim]
        q = q.view(batch, HEADS, 3, 2, HEAD)
        k, v = (functional.pad(t, (0, 0, 2, 2)).unfold(2, 6, 2).transpose(-1, -2) for t in (k, v))
        inside = functional.pad(torch.ones(TOKENS, dtype=torch.bool), (2, 2)).unfold(0, 6, 2)  # [3, 6]
        scores = self.scores(q, k).masked_fill(~inside[None, None, :, None], float("-inf"))
        weights = scores.softmax(-1)
        update = merge((weights @ v).reshape(batch, HEADS, TOKENS, HEAD))
        places = functional.pad(torch.arange(TOKENS), (2, 2)).unfold(0, 6, 2)
        own = torch.arange(TOKENS).view(3, 2)
        return update, spread(weights.transpose(1, 2), own, places, TOKENS)


SIDE = 4
GRID = SIDE * SIDE


class Shifted(Plain):
    """4 x 4 tokens, rolled by one, in 2 x 2 windows, masked where the roll joins strangers."""

    def windows(self, t: Tensor) -> Tensor:
        parts = t.view(t.shape[0], 2, 2, 2, 2, *t.shape[3:])
        return parts.transpose(2, 3).reshape(t.shape[0], 4, 4, *t.shape[3:])

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.shape[0]
        place = torch.arange(GRID).view(1, SIDE, SIDE)
        place = self.windows(place.roll((-1, -1), (1, 2)))[0]  # [window, 4]
        zone = torch.zeros(SIDE, SIDE, dtype=torch.long)
        zone[:2], zone[2:3], zone[3:] = 0, 1, 2
        zone = self.windows((zone * 3 + zone.T)[None])[0]
        stranger = zone[:, :, None] != zone[:, None]  # [window, 4, 4]

        rolled = x.view(batch, SIDE, SIDE, WIDTH).roll((-1, -1), (1, 2))
        q, k, v = self.qkv(self.windows(rolled).reshape(batch * 4, 4, WIDTH))
        scores = self.scores(q, k).view(batch, 4, HEADS, 4, 4)
        weights = scores.masked_fill(stranger[None, :, None], -100.0).softmax(-1)
        update = merge(weights.view(batch * 4, HEADS, 4, 4) @ v).view(batch, 2, 2, 2, 2, WIDTH)
        update = update.transpose(2, 3).reshape(batch, SIDE, SIDE, WIDTH).roll((1, 1), (1, 2))
        return update.flatten(1, 2), spread(weights, place, place, GRID)


class Axial(Plain):
    """Along the rows of the grid alone; the columns lie in the batch axis."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.shape[0]
        q, k, v = self.qkv(x.view(batch * SIDE, SIDE, WIDTH))
        weights = self.scores(q, k).softmax(-1)
        place = torch.arange(GRID).view(SIDE, SIDE)
        full = spread(weights.view(batch, SIDE, HEADS, SIDE, SIDE), place, place, GRID)
        return merge(weights @ v).view(batch, GRID, WIDTH), full


class ReducedKeys(Plain):
    """Pyramid vision transformers: keys and values from a strided convolution over the tokens."""

    def extend(self) -> None:
        self.reduce = nn.Conv1d(WIDTH, WIDTH, 2, stride=2)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        short = self.reduce(x.transpose(1, 2)).transpose(1, 2)
        q, k, v = split(self.q(x)), split(self.k(short)), split(self.v(short))
        weights = self.scores(q, k).softmax(-1)
        return merge(weights @ v), weights


class Projected(ReducedKeys):
    """Linformer: keys and values by a learned linear over the token axis."""

    def extend(self) -> None:
        self.shorten = nn.Linear(TOKENS, 3)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        k, v = (self.shorten(t.transpose(-1, -2)).transpose(-1, -2) for t in (k, v))
        weights = self.scores(q, k).softmax(-1)
        return merge(weights @ v), weights


class LearnedQuery(Plain):
    """Attention pooling: one learned query reads the tokens, and the score reads it."""

    def extend(self) -> None:
        self.query = nn.Parameter(torch.randn(1, 1, WIDTH))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = split(self.q(self.query.expand(x.shape[0], -1, -1)))
        weights = self.scores(q, split(self.k(x))).softmax(-1)
        return merge(weights @ split(self.v(x))), weights

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.attend(self.embed(x))[0][:, 0])
        return logits


class LinearScorer(Plain):
    """Attention pooling without a query: a linear layer scores the tokens."""

    def extend(self) -> None:
        self.score = nn.Linear(WIDTH, 1)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.score(torch.tanh(self.k(x))).softmax(dim=1)  # [batch, token, 1]
        return (weights * x).sum(1), weights.transpose(1, 2)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.attend(self.embed(x))[0])
        return logits


class ClassAttention(Plain):
    """CaiT: the class token alone asks; it and the patches answer."""

    def extend(self) -> None:
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        everything = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        q = split(self.q(everything[:, :1]))
        weights = self.scores(q, split(self.k(everything))).softmax(-1)
        return merge(weights @ split(self.v(everything))), weights

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        logits: Tensor = self.head(self.cls[:, 0] + self.out(self.attend(hidden)[0])[:, 0])
        return logits


LATENTS = 4


class Latents(Plain):
    """Perceiver: latents ask the tokens; with ``joined`` they also answer, as in a resampler."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.joined = joined

    def extend(self) -> None:
        self.latents = nn.Parameter(torch.randn(LATENTS, WIDTH))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        asked = self.latents.expand(x.shape[0], -1, -1)
        keys = torch.cat([x, asked], 1) if self.joined else x
        weights = self.scores(split(self.q(asked)), split(self.k(keys))).softmax(-1)
        return merge(weights @ split(self.v(keys))), weights

    def forward(self, x: Tensor) -> Tensor:
        update = self.attend(self.embed(x))[0]
        logits: Tensor = self.head(self.latents[0] + self.out(update)[:, 0])
        return logits


class Two(Plain):
    """Two streams; x looks at y, and with ``both`` y looks at x as well, from the state before."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both = both

    def extend(self) -> None:
        self.other = nn.Linear(WIDTH, WIDTH)

    def look(self, asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.scores(split(self.q(asking)), split(self.k(asked))).softmax(-1)
        return self.out(merge(weights @ split(self.v(asked)))), weights

    def run(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, y = self.embed(x), self.other(y)
        maps = []
        for _ in range(2):
            to_x, map_x = self.look(x, y)
            maps.append(map_x)
            if self.both:
                to_y, map_y = self.look(y, x)
                maps.append(map_y)
                y = y + to_y
            x = x + to_x
        return self.head(x[:, 0]) + self.head(y[:, 1]), maps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.run(x, y)[0]

    def maps(self, x: Tensor, y: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return self.run(x, y)[1]


CROSS = site("encoder_decoder", keys=("y",), nk=OTHERS)
CO = (site("co", keys=("y",), nk=OTHERS), site("co", ("y",), ("x",), nq=OTHERS))
BOTH_READ = rows(("x", (0,)), ("y", (1,)))
PAST = {
    "x": floats(2, TOKENS, WIDTH, seed=7),
    "past_k": floats(2, HEADS, 2, HEAD, seed=12),
    "past_v": floats(2, HEADS, 2, HEAD, seed=13),
}
IMAGE = {"x": floats(2, GRID, WIDTH, seed=7)}

STREAMS: dict[str, Builder] = {
    "sink-logit": case(SinkLogit),
    "sink-tokens": case(ExtraKeys, marks=("extra keys",)),
    "sink-prefix_of_3": case(lambda: ExtraKeys(3), marks=("extra keys",)),
    "sink-zeros": case(lambda: ExtraKeys(1, 1), marks=("extra keys",)),
    "cached": case(
        Cached, (site(keys=("past_k", "x"), nk=TOKENS + 2),), inputs=PAST, maps=own_maps, marks=("prefix",)
    ),
    "chunked": case(Chunked),
    "chunked-neighbours": case(Neighbours),
    "shifted": case(Shifted, (site(nq=GRID, nk=GRID),), inputs=IMAGE),
    "axial": case(Axial, (site(nq=GRID, nk=GRID),), inputs=IMAGE),
    "reduced_keys": case(ReducedKeys, (site(nk=3),), marks=("mixed keys",)),
    "projected_keys": case(Projected, (site(nk=3),), marks=("mixed keys",)),
    "pooling-query": case(
        LearnedQuery, (site("encoder_decoder", ("query",), nq=1),), readout=rows(("query", (0,)))
    ),
    "pooling-scorer": case(
        LinearScorer,
        (site("self", ("*",), heads=1, nq=1),),
        readout=(),
        marks=("no queries",),
    ),
    "class_attention": case(
        ClassAttention,
        (site("self", ("cls",), ("cls", "x"), nq=1, nk=TOKENS + 1),),
        readout=rows(("cls", (0,))),
    ),
    "latents": case(
        lambda: Latents(False),
        (site("encoder_decoder", ("latents",), nq=LATENTS),),
        readout=rows(("latents", (0,))),
    ),
    "latents-joined": case(
        lambda: Latents(True),
        (site("self", ("latents",), ("x", "latents"), nq=LATENTS, nk=TOKENS + LATENTS),),
        readout=rows(("latents", (0,))),
        marks=("mixed blocks",),
    ),
    "cross-co": case(lambda: Two(True), CO * 2, two=True, readout=BOTH_READ),
    "cross-one_way": case(lambda: Two(False), (CROSS, CROSS), two=True, readout=BOTH_READ),
}
