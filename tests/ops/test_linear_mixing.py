"""Token mixing that is no attention: said to be what it is, and beside an attention told or followed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fft, nn

import fxplain
from fxplain.errors import NoAttentionError

BATCH, TOKENS, WIDTH = 2, 6, 8


class Mixer(nn.Module):
    """x + mixing of x, then perhaps an attention; the last token is read."""

    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.gate, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.tokens, self.filter = nn.Linear(TOKENS, TOKENS), nn.Parameter(torch.randn(4, WIDTH, 2))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True) if attends else None

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.mix(x)
        if self.attention is not None:
            x = x + self.attention(x, x, x, need_weights=False)[0]
        logits: Tensor = self.head(x[:, -1])
        return logits


class Fourier(Mixer):
    def mix(self, x: Tensor) -> Tensor:
        return fft.fftn(x, dim=(1, 2)).real


class Filtered(Mixer):
    def mix(self, x: Tensor) -> Tensor:
        spectrum = fft.rfft(x, dim=1) * torch.view_as_complex(self.filter)
        return fft.irfft(spectrum, n=TOKENS, dim=1)


class RunningMean(Mixer):
    def mix(self, x: Tensor) -> Tensor:
        return x.cumsum(1) / torch.arange(1, TOKENS + 1)[:, None]


class StateSpace(Mixer):
    def mix(self, x: Tensor) -> Tensor:
        read, write, value = self.qkv(x).chunk(3, -1)
        state, found = x.new_zeros(len(x), WIDTH, WIDTH), []
        for t in range(TOKENS):
            state = state * self.gate(x[:, t]).sigmoid()[..., None] + write[:, t, :, None] * value[:, t, None]
            found.append((read[:, t, None] @ state)[:, 0])
        return torch.stack(found, 1)


class Kernel(Mixer):
    def mix(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        query, key = nn.functional.elu(query) + 1, nn.functional.elu(key) + 1
        return (query @ (key.mT @ value)) / (query @ key.sum(1)[:, :, None])


class Channels(Mixer):
    def mix(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        return value @ (query.mT @ key).softmax(-1)


class Perceptron(Mixer):
    def mix(self, x: Tensor) -> Tensor:
        return self.tokens(x.mT).mT


ROLES: dict[type[Mixer], str] = {
    Fourier: "FFT mixing",
    Filtered: "FFT mixing",
    RunningMean: "running sum",
    StateSpace: "recurrence",
    Kernel: "linear attention",
    Channels: "channel attention",
    Perceptron: "token mixing",
}
CASES = pytest.mark.parametrize("kind", ROLES, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tokens() -> Tensor:
    return torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


@CASES
def test_alone_it_is_refused_by_its_name(kind: type[Mixer]) -> None:
    with pytest.raises(NoAttentionError, match=ROLES[kind]):
        fxplain.explain(kind(False).eval(), tokens())


@CASES
def test_beside_an_attention_it_is_told(kind: type[Mixer]) -> None:
    found = fxplain.trace(kind(True).eval(), tokens())
    assert [(a.kind, a.queries.size, a.keys.size) for a in found.attentions] == [("self", TOKENS, TOKENS)]
    roles = [entry.role for entry in found.census]
    assert ROLES[kind] in roles
    assert "unknown" not in roles
    results = [found.explain(tokens(), target=target) for target in range(3)]
    assert sum(float(result.relevance["x"].sum()) for result in results) > 0
    assert [row[0][0] for row in results[0].readout] == [TOKENS - 1] * BATCH
    assert all(len(row) == 1 for row in results[0].readout)
    assert [note for note in results[0].notes if "mixes tokens" in note or "sums tokens" in note]
