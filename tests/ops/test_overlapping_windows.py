"""Chunks of a sequence that overlap by half: each token asks in two of them, with the same heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import fxplain

LENGTH, CHUNK = 10, 4


class Chunks(nn.Module):
    """Two heads within chunks of four, which begin at every second token; the sums of both come back."""

    def __init__(self, folded: bool) -> None:
        super().__init__()
        self.embed, self.project, self.head = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 2)
        self.map, self.folded = nn.Identity(), folded

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        chunks = pad(tokens, (0, 0, 2, 2)).unfold(1, CHUNK, 2).transpose(2, 3)
        batch, count = chunks.shape[:2]
        heads = self.project(chunks.flatten(0, 1)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.flatten(1, 2) if self.folded else heads
        read = self.map((query @ key.mT / 2).softmax(-1)) @ value
        read = read.view(batch, count, 2, CHUNK, 4).transpose(2, 3).flatten(3)
        even, odd = (pad(read[:, first::2].flatten(1, 2), (0, 0, 2 * first, 4)) for first in (0, 1))
        return self.head(tokens + (even[:, :14] + odd[:, :14])[:, 2:12])


def by_hand(model: Chunks, x: Tensor, target: tuple[int, int]) -> Tensor:
    """Eq. 5: heads are averaged, and what a token reads in its two chunks adds up."""
    maps: list[Tensor] = []
    hook = model.map.register_forward_hook(lambda _, given, made: maps.append(made))
    score = model(x)[0, *target]
    hook.remove()
    (gradient,) = torch.autograd.grad(score, maps)
    weights = (gradient * maps[0]).clamp(min=0).view(-1, 2, CHUNK, CHUNK).mean(1).detach()
    padded = torch.zeros(LENGTH + 4, LENGTH + 4)
    for place, chunk in enumerate(weights):
        padded[2 * place : 2 * place + CHUNK, 2 * place : 2 * place + CHUNK] += chunk
    return padded[2:12, 2:12][target[0]]


@pytest.mark.parametrize("folded", [False, True], ids=["own_axis", "folded"])
def test_rows_of_other_chunks_are_no_heads(folded: bool) -> None:
    torch.manual_seed(0)
    model, x = Chunks(folded).eval(), torch.randn(1, LENGTH, 3)
    traced = fxplain.trace(model, x)
    (attention,) = traced.attentions
    assert (attention.kind, attention.heads, attention.queries.size) == ("self", 2, LENGTH)
    for target in ((4, 1), (9, 0)):
        expected = by_hand(model, x, target)
        expected[target[0]] = 0  # the own entry is set aside
        torch.testing.assert_close(traced.explain(x, target=target).relevance["x"][0], expected)


class LookingBack(nn.Module):
    """Chunks of tokens that attend to themselves and to the chunk before; the first looks at the last."""

    def __init__(self, rolled: bool) -> None:
        super().__init__()
        self.embed, self.query, self.key, self.head = nn.Linear(3, 8), *(nn.Linear(8, 8) for _ in range(3))
        self.rolled = rolled

    def adjacent(self, chunks: Tensor) -> Tensor:
        before = chunks.roll(1, 1) if self.rolled else torch.cat([chunks[:, -1:], chunks[:, :-1]], 1)
        return torch.cat([before, chunks], 2)

    def forward(self, x: Tensor) -> Tensor:
        chunks = self.embed(x).unflatten(1, (2, -1))
        keys = self.adjacent(self.key(chunks))
        read = (self.query(chunks) @ keys.mT).softmax(-1) @ self.adjacent(chunks)
        return self.head((chunks + read).flatten(1, 2)[:, 0])


def test_two_chunks_laid_one_after_the_other_stay_two() -> None:
    """Each chunk is one place along its axis: its tokens are no features of the other's."""
    x, found = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0)), []
    for rolled in (True, False):
        torch.manual_seed(0)
        traced = fxplain.trace(LookingBack(rolled).eval(), x)
        result = traced.explain(x, target=1)
        assert not any(law.broken for law in traced.laws(x, result))
        found.append(result.relevance["x"])
    torch.testing.assert_close(found[1], found[0])
