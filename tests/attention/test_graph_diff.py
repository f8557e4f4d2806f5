"""How attention graphs differ: added and removed steps, changed ones, streams, and what reads what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.attention.diff import Graph, GraphDiff, aligned, diff


class Attend(nn.Module):
    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, reader: Tensor, read: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, reader), (self.key, read), (self.value, read))
        )
        return ((query @ key.mT).softmax(-1) @ value).transpose(1, 2).flatten(2)


class Stack(nn.Module):
    def __init__(self, *heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attend(count) for count in heads)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, x)
        return x


class Pair(nn.Module):
    """Two streams that read each other, at the same time or one after the other."""

    def __init__(self, at_once: bool) -> None:
        super().__init__()
        self.one, self.two, self.back, self.forth = nn.Linear(8, 8), nn.Linear(8, 8), Attend(), Attend()
        self.at_once = at_once

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.one(a), self.two(b)
        new = a + self.back(a, b)
        return new, b + self.forth(b, a if self.at_once else new)


def graph(model: nn.Module, *inputs: Tensor) -> Graph:
    return fxplain.trace(model.eval(), inputs or (torch.randn(1, 5, 8),)).graph


def told(found: GraphDiff) -> list[tuple[str, tuple[Any, ...]]]:
    return [(change.what, change.facts) for change in found.changes]


def test_names_of_modules_and_inputs_are_no_difference() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Stack(2), Stack(2))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.blocks(tokens)

    found = diff(graph(Stack(2, 2)), graph(Other()))
    assert found.equal
    assert found.same == 2
    assert found.counts == {"self": (2, 2)}


def test_fused_or_not_is_no_difference() -> None:
    class Fused(Attend):
        def forward(self, reader: Tensor, read: Tensor) -> Tensor:
            query, key, value = (
                layer(x).unflatten(-1, (2, 4)).transpose(1, 2)
                for layer, x in ((self.query, reader), (self.key, read), (self.value, read))
            )
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            return mixed.transpose(1, 2).flatten(2)

    fused = Stack(2)
    fused.layers[0] = Fused()
    assert diff(graph(Stack(2)), graph(fused)).equal


def test_layers_that_are_added_and_changed() -> None:
    found = diff(graph(Stack(2, 2)), graph(Stack(2, 4, 2, 2)))
    assert told(found) == [("added", ()), ("added", ())]
    assert [change.right["heads"] for change in found.changes if change.right] == [4, 2]
    assert told(diff(graph(Stack(2, 2)), graph(Stack(2, 4)))) == [("changed", (("heads", 2, 4),))]
    assert told(diff(graph(Stack(2, 2)), graph(Stack(2)))) == [("removed", ())]


def test_streams_that_are_read_at_once_or_in_turn() -> None:
    inputs = torch.randn(1, 5, 8), torch.randn(1, 3, 8)
    found = diff(graph(Pair(True), *inputs), graph(Pair(False), *inputs))
    assert told(found) == [("changed", (("after", "", "attention:0"),))]


def test_another_stream_is_read() -> None:
    class Cross(nn.Module):
        def __init__(self, swapped: bool) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
            self.first, self.second, self.third = Attend(), Attend(), Attend()
            self.swapped = swapped

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            a, b, c = self.a(a), self.b(b), self.c(c)
            a = a + self.first(a, b)
            a = a + self.second(a, c)
            return a + self.third(a, b if self.swapped else c)

    inputs = torch.randn(1, 5, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    (change,) = diff(graph(Cross(False), *inputs), graph(Cross(True), *inputs)).changes
    assert change.facts == (("keys", "c", "b"),)


def test_an_attention_is_no_mixing() -> None:
    class Pooled(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean(1)

    found = diff(graph(Stack(2)), graph(Pooled(2)))
    assert [change.right["op"] for change in found.changes if change.right] == ["mean"]
    assert found.counts == {"self": (1, 1), "mixing": (0, 1)}


@pytest.mark.parametrize(("one", "two"), [("", ""), ("ab", ""), ("", "ab"), ("abc", "axc"), ("aab", "ab")])
def test_alignment_keeps_order_and_everybody(one: str, two: str) -> None:
    def steps(text: str) -> list[dict[str, str]]:
        return [{"type": "attention", "kind": letter, "size": letter} for letter in text]

    pairs = aligned(steps(one), steps(two))
    assert [i for i, _ in pairs if i is not None] == list(range(len(one)))
    assert [j for _, j in pairs if j is not None] == list(range(len(two)))
    same = sum(i is not None and j is not None and one[i] == two[j] for i, j in pairs)
    assert same == {"abc": 2, "aab": 2}.get(one, 0)
