"""Copies of one token: several tokens where they stand side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain

BATCH, HEADS, DIM = 2, 2, 4
WIDTH = HEADS * DIM


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.map = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, DIM)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        map = self.map((q @ k.mT / 2).softmax(-1))
        return x + self.out((map @ v).transpose(1, 2).flatten(2))


class Lines(nn.Module):
    """A picture as text: one learned token at the end of every line."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, 3)
        self.newline = nn.Parameter(torch.randn(WIDTH))
        self.first, self.second = Attend(), Attend()

    def forward(self, picture: Tensor) -> Tensor:
        grid = self.patch(picture)
        newline = self.newline[:, None, None].expand(len(grid), WIDTH, grid.shape[2], 1)
        x = torch.cat([grid, newline], 3).flatten(2).mT
        logits: Tensor = self.head(self.second(self.first(x))[:, -1])
        return logits


class Frames(nn.Module):
    """Every word lasts as many frames as it says."""

    def __init__(self, lasting: tuple[int, ...]) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 3)
        self.register_buffer("lasting", torch.tensor(lasting))
        self.place = nn.Parameter(torch.randn(1, sum(lasting), WIDTH))
        self.read, self.speak = Attend(), Attend()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.read(self.words(ids))
        y = x.repeat_interleave(self.lasting, 1) + self.place
        logits: Tensor = self.head(self.speak(y)[:, -1])
        return logits


def model_maps(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    hooks = [
        m.map.register_forward_hook(lambda _, __, map: found.append(map.detach()))
        for m in model.modules()
        if isinstance(m, Attend)
    ]
    model(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def check(model: nn.Module, *inputs: Tensor) -> tuple[Any, Any]:
    """The trace and the explanation; maps have the model's own entries, samples are what they are alone."""
    found = fxplain.trace(model.eval(), inputs)
    for ours, theirs in zip(found.maps(inputs), model_maps(model, *inputs), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours.flatten().sort().values, theirs.flatten().sort().values)
    result = found.explain(inputs, 1)
    for sample in range(BATCH):
        alone = fxplain.explain(model, tuple(t[sample : sample + 1] for t in inputs), 1)
        for space, values in alone.relevance.items():
            torch.testing.assert_close(values[0], result.relevance[space][sample])
    return found, result


def test_a_learned_token_at_the_end_of_every_line() -> None:
    found, result = check(Lines(), torch.randn(BATCH, 3, 12, 8))
    assert [(space.name, space.size) for space in found.spaces] == [("picture", 6), ("newline", 3)]
    assert [(a.kind, a.queries.size, a.keys.size) for a in found.attentions] == [("self", 9, 9)] * 2
    assert not found.mixings
    assert bool((result.relevance["newline"][:, :-1] > 0).any())  # the last line's end is what is read


@pytest.mark.parametrize("lasting", [(1, 3, 2), (2, 2, 2)])
def test_words_that_last_several_frames(lasting: tuple[int, ...]) -> None:
    model, ids = Frames(lasting), torch.randint(0, 20, (BATCH, 3))
    found, result = check(model, ids)
    assert [(a.kind, a.queries.size) for a in found.attentions] == [("self", 3), ("self", sum(lasting))]
    assert [m.op for m in found.mixings] == ["repeat_interleave"]
    assert bool((result.relevance["ids"].sum(-1) > 0).all())


def test_relevance_of_a_frame_is_that_of_its_word() -> None:
    """By hand: R of the words, repeated, then one more layer."""
    lasting = (1, 3, 2)
    model, ids = Frames(lasting).eval(), torch.randint(0, 20, (1, 3))
    traced = fxplain.trace(model, ids)
    result = traced.explain(ids, 1)
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, map: Tensor) -> None:
        map.retain_grad()
        kept.append(map)

    for attend in (model.read, model.speak):
        attend.map.register_forward_hook(keep)
    model(ids)[0, 1].backward()
    read, speak = ((map.grad * map).clamp(min=0)[0].mean(0) for map in kept)
    words = torch.eye(3) + read
    frames = words.repeat_interleave(torch.tensor(lasting), 0)
    expected = (frames + speak @ frames)[-1]
    torch.testing.assert_close(result.relevance["ids"][0], expected)


class Messages(nn.Module):
    """Class tokens of all frames attend to each other; what each has heard stands beside it in its frame."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.place = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.tell, self.heard, self.space = Attend(), nn.Linear(WIDTH, WIDTH), Attend()

    def forward(self, video: Tensor) -> Tensor:
        batch, frames = video.shape[:2]
        x = self.patch(video.flatten(0, 1))
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.place
        heard = self.heard(self.tell(x[:, 0].unflatten(0, (batch, frames)))).flatten(0, 1)
        x = self.space(torch.cat([x, heard[:, None]], 1))
        logits: Tensor = self.head(x[:, 0].unflatten(0, (batch, frames)).mean(1))
        return logits


def test_copies_of_copies() -> None:
    found = fxplain.trace(Messages().eval(), video := torch.randn(BATCH, 2, 3, 5))
    tell, space = found.attentions
    assert (tell.kind, tell.queries.size) == ("self", 2)
    assert (space.kind, space.queries.size) == ("self", 2 * (1 + 3 + 1))
    _, theirs = model_maps(found.model, video)
    entries = [map[map != 0].sort().values for map in (found.maps(video)[1], theirs)]
    torch.testing.assert_close(*entries)


class Causal(nn.Module):
    """A wave through a convolution that looks back, over zeros put before it; a loss beside the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.attend = nn.Conv1d(1, WIDTH, 5, 2), Attend()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        x = self.look(nn.functional.pad(wave, (4, 0))).mT
        y = self.attend(x)
        return self.head(y[:, -1]), nn.functional.mse_loss(y, x)


def test_padding_is_nobodys_sample_and_a_loss_nobodys_token() -> None:
    model, wave = Causal().eval(), torch.randn(BATCH, 1, 12)
    found = fxplain.trace(model, wave)
    assert not found.lost
    assert [(a.queries.size, a.heads) for a in found.attentions] == [(6, HEADS)]
    result = found.explain(wave, 1)
    for sample in range(BATCH):
        alone = fxplain.explain(model, wave[sample : sample + 1], 1)
        torch.testing.assert_close(alone.relevance["wave"][0], result.relevance["wave"][sample])
