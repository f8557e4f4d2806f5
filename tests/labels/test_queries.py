"""Learned queries and their positions, in the ways in which the two meet; and a stem of a single place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxplain

BATCH, WIDTH, QUERIES = 2, 8, 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Attend(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fused = fused

    def forward(self, x: Tensor, y: Tensor, value: Tensor | None = None) -> Tensor:
        layers = ((self.q, x), (self.k, y), (self.v, y if value is None else value))
        q, k, v = (f(t).unflatten(-1, (2, 4)).transpose(1, 2) for f, t in layers)
        if self.fused:
            out = functional.scaled_dot_product_attention(q, k, v)
        else:
            out = (q @ k.mT / 2).softmax(-1) @ v
        return self.out(out.transpose(1, 2).flatten(2))


class Presence(nn.Module):
    """Queries with positions worked out from learned places, and beside them one that has none."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.read, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.presence = nn.Parameter(torch.randn(1, WIDTH))
        self.places, self.embed = nn.Parameter(torch.randn(QUERIES, 4)), nn.Linear(4, WIDTH)
        self.alone, self.cross = Attend(fused), Attend(fused)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.read(x)
        queries = torch.cat([self.presence, self.queries])[None].expand(len(x), -1, -1)
        place = functional.pad(self.embed(self.places.sigmoid()), (0, 0, 1, 0))
        placed = queries + place
        queries = queries + self.alone(placed, placed, queries)
        queries = queries + self.cross(queries + place, memory)
        logits: Tensor = self.head(queries)
        return logits


class OnePlace(nn.Module):
    """A stem whose last block has two branches, and whose last grid has one place."""

    attends_before = False

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, 2, 1)
        self.long, self.short = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), nn.Conv2d(WIDTH, WIDTH, 1, 2)
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.alone, self.cross, self.head = Attend(fused), Attend(fused), nn.Linear(WIDTH, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels).relu()
        if self.attends_before:
            tokens = x.flatten(2).mT
            x = x + self.alone(tokens, tokens).mT.view_as(x)
        x = (self.long(x) + self.short(x)).flatten(2).mT
        x = x + self.alone(x, x)
        queries = self.queries[None].expand(len(x), -1, -1)
        logits: Tensor = self.head(queries + self.cross(queries, x))
        return logits


class OnePlaceLater(OnePlace):
    """The same behind an attention, in a hierarchy."""

    attends_before = True


def both(kind: Any, x: Tensor) -> tuple[Any, Any]:
    """The trace with the fused kernel, and its explanation: the same as with the map written out."""
    eager, fused = (kind(each).eval() for each in (False, True))
    fused.load_state_dict(eager.state_dict())
    traces = [fxplain.trace(model, x) for model in (eager, fused)]
    first, second = (trace.explain(x, (1, 2)) for trace in traces)
    assert list(first.relevance) == list(second.relevance)
    for space, values in first.relevance.items():
        torch.testing.assert_close(second.relevance[space], values)
    return traces[1], second


def test_a_query_without_a_position_is_one_too() -> None:
    found, result = both(Presence, torch.randn(BATCH, 6, 5))
    assert [(a.kind, a.queries.size, a.keys.size) for a in found.attentions] == [
        ("self", 4, 4),
        ("encoder_decoder", 4, 6),
    ]
    assert {space.name: space.size for space in found.spaces} == {"presence": 1, "queries": 3, "x": 6}
    assert bool((result.relevance["x"] > 0).any())


def test_branches_of_a_stem_are_one_place() -> None:
    found, result = both(OnePlace, torch.randn(BATCH, 3, 4, 4))
    assert [(a.kind, a.queries.size, a.keys.size) for a in found.attentions] == [
        ("self", 1, 1),
        ("encoder_decoder", 3, 1),
    ]
    assert bool((result.relevance["pixels"] > 0).all())


def test_branches_that_end_in_one_place_are_one_token() -> None:
    found, result = both(OnePlaceLater, torch.randn(BATCH, 3, 4, 4))
    assert [(a.kind, a.queries.size, a.keys.size) for a in found.attentions] == [
        ("self", 4, 4),
        ("self", 1, 1),
        ("encoder_decoder", 3, 1),
    ]
    assert bool((result.relevance["pixels"] > 0).all())
