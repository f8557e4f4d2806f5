"""What a law must not take for a fault: where a note tells of it, or where the reading is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxplain
from fxplain.laws.table import LAWS

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


class Net(nn.Module):
    """Attention over rows, read at the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.key, self.value, self.head = (nn.Linear(8, 8) for _ in range(5))
        self.extend()

    def extend(self) -> None: ...

    def weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def attend(self, x: Tensor) -> Tensor:
        return self.weigh(self.query(x) @ self.key(x).mT) @ self.value(x)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepare(self.embed(x))
        x = x + self.attend(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


class Logarithms(Net):
    def weigh(self, scores: Tensor) -> Tensor:
        return scores.log_softmax(-1).exp()


class OneKey(Net):
    def attend(self, x: Tensor) -> Tensor:
        return self.weigh(self.query(x) @ self.key(x[:, :1]).mT) @ self.value(x[:, :1])


class NoKey(Net):
    """A first query that sees no key at all: its softmax holds no numbers."""

    def weigh(self, scores: Tensor) -> Tensor:
        earlier = torch.ones(5, 5, dtype=torch.bool).tril(-1)
        return scores.masked_fill(~earlier, float("-inf")).softmax(-1).nan_to_num()


class Grouped(Net):
    """Statistics of all tokens together."""

    def extend(self) -> None:
        self.norm = nn.GroupNorm(1, 8)

    def prepare(self, x: Tensor) -> Tensor:
        return self.norm(x.mT).mT  # type: ignore[no-any-return]


class Positions(Net):
    """A convolution over tokens that is added to them."""

    def extend(self) -> None:
        self.near = nn.Conv1d(8, 8, 3, padding=1)

    def prepare(self, x: Tensor) -> Tensor:
        return x + functional.gelu(self.near(x.mT).mT)


class Gated(Net):
    """A gate by the mean of all tokens."""

    def prepare(self, x: Tensor) -> Tensor:
        return x * x.mean(1, keepdim=True).sigmoid()


class Channels(Net):
    """A map between features, from which the tokens are summed out, read by the tokens."""

    def prepare(self, x: Tensor) -> Tensor:
        weights = (self.key(x).mT @ self.value(x)).softmax(-1)
        return x + (weights @ self.query(x).mT).mT


class Strided(Net):
    """Overlapping windows of keys, cut in memory from a tensor whose tokens came first."""

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens = x.shape[:2]
        kept = self.key(x.transpose(0, 1)).transpose(0, 1)  # not contiguous
        sample, token = kept.stride()[:2]
        keys = kept.as_strided((batch, tokens - 1, 2, 8), (sample, token, token, 1))
        read = self.weigh(self.query(x[:, 1:, None]) @ keys.mT) @ keys
        return functional.pad(read.flatten(1, 2), (0, 0, 1, 0))


class Prompted(Net):
    """Ids that the model lays before those it is given."""

    def extend(self) -> None:
        self.words, self.kinds = nn.Embedding(30, 8), nn.Embedding(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        prompt = torch.arange(20, 23).repeat(len(x), 1)
        kinds = torch.cat([torch.zeros_like(prompt), torch.where(x != 0, 2, 0)], 1)
        tokens = self.words(torch.cat([prompt, x], 1)) + self.kinds(kinds)
        tokens = tokens + self.attend(tokens)
        logits: Tensor = self.head(tokens[:, -1])
        return logits


class Additive(Net):
    """Scores of one query, and their softmax by hand: the sum of a row is no softmax, its quotient is one."""

    def extend(self) -> None:
        self.vector = nn.Parameter(torch.randn(8))

    def attend(self, x: Tensor) -> Tensor:
        scores = ((self.query(x[:, :1, None]) + self.key(x[:, None])).tanh() * self.vector).sum(-1)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return weights / weights.sum(-1, keepdim=True) @ self.value(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        logits: Tensor = self.head((x[:, :1] + self.attend(x))[:, 0])
        return logits


class Towers(Net):
    """A tower of convolutions beside the attention, whose last tokens are an output of their own."""

    def extend(self) -> None:
        self.cut, self.near = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = self.cut(picture).relu()
        y = self.near(y + self.near(y).relu())
        x = self.embed(x)
        score = self.head((x + self.attend(x))[:, 0]) * functional.avg_pool2d(y, 4).flatten(1)
        return score.sum(-1, keepdim=True), y


class EveryFrame(Net):
    """A learned token that stands in each frame."""

    def extend(self) -> None:
        self.first = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        frames = self.embed(x).unflatten(1, (2, 3)).flatten(0, 1)
        frames = torch.cat([self.first.expand(len(frames), -1, -1), frames], 1)
        frames = frames + self.attend(frames)
        logits: Tensor = self.head(frames[:, 0].unflatten(0, (-1, 2)).mean(1))
        return logits


class Renormed(Net):
    """Each feature's norm over all tokens and samples is bounded."""

    def prepare(self, x: Tensor) -> Tensor:
        return torch.renorm(x, 2, 2, 0.5)


class Products(Net):
    """Neighbours are multiplied before any attention."""

    def prepare(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, 1:] * x[:, :-1]], 1)


OTHERS: dict[type[Net], Any] = {
    EveryFrame: torch.randn(2, 6, 8),
    Prompted: IDS,
    Towers: (X, torch.randn(2, 3, 8, 8)),
}
CASES = {
    Logarithms: "",
    OneKey: "",
    NoKey: "",
    Grouped: "takes statistics of several tokens of x",
    Positions: "tokens of x take in what was mixed of them before any attention, in the model",
    Gated: "",
    Channels: "matmul sums tokens without a token-to-token map",
    Strided: "",
    Prompted: "",
    Additive: "",
    Renormed: "takes statistics of several tokens of x",
    Products: "tokens of x take in what was mixed of them before any attention, in the model",
    Towers: "is at tokens of picture that no relevance reaches: the model",
    EveryFrame: "tokens of first stand at several places of one sequence",
}


@pytest.mark.parametrize("build", CASES, ids=[each.__name__ for each in CASES])
def test_it_is_no_fault(build: type[Net]) -> None:
    x = OTHERS.get(build, X)
    verdict = fxplain.check(build().eval(), x)
    assert [verdict.finding(law.name).outcome for law in LAWS] == ["ok"] * len(LAWS), str(verdict)
    assert verdict.result is not None
    assert any(CASES[build] in note for note in verdict.result.notes) or not CASES[build]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
