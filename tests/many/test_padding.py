"""Datasets of natural lengths: samples padded to one batch are explained as they are by themselves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain

Entry = dict[str, Tensor]


class Reader(nn.Module):
    """Two scores of a text of which ``mask`` says what is there."""

    def __init__(self, blind: bool = False, absent: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.blind, self.absent = blind, absent

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        gone = mask if self.absent else mask == 0
        features = self.layer(self.embed(ids), src_key_padding_mask=gone)
        if self.blind:  # the mean over places that are padding, too
            return self.head(features.mean(1))  # type: ignore[no-any-return]
        kept = features.masked_fill(gone[..., None], 0)
        return self.head(kept.sum(1) / (~gone).sum(1, keepdim=True))  # type: ignore[no-any-return]


def texts(lengths: Sequence[int], absent: bool = False) -> list[Entry]:
    torch.manual_seed(1)
    mask = torch.zeros if absent else torch.ones
    dtype = torch.bool if absent else torch.int64
    return [{"ids": torch.randint(20, (1, n)), "mask": mask(1, n, dtype=dtype)} for n in lengths]


DRAW = random.Random(0)
LENGTHS = [DRAW.randint(3, 30) for _ in range(20)]


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Of the ids of each call."""
    found: list[tuple[int, ...]] = []
    explain = fxplain.Traced.explain

    def counted(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(tuple(inputs["ids"].shape))
        return explain(self, inputs, *args, **kwargs)

    monkeypatch.setattr(fxplain.Traced, "explain", counted)
    return found


def check(model: nn.Module, data: Sequence[Entry], found: list[fxplain.Explained], target: Any) -> None:
    """Every entry has what it has by itself."""
    traced = fxplain.trace(model.eval(), data[0])
    assert sorted(record.index for record in found) == list(range(len(data)))
    for record in found:
        alone = traced.explain(data[record.index], target)
        assert list(record.relevance) == list(alone.relevance)
        for name, values in record.relevance.items():
            torch.testing.assert_close(values, alone.relevance[name][0], rtol=1e-4, atol=1e-8)
        assert record.score == pytest.approx(alone.score.item(), rel=1e-5)
        assert record.target == alone.target[0]


@pytest.mark.parametrize("absent", [False, True])
def test_texts_of_many_lengths_take_few_batches(shapes: list[tuple[int, ...]], absent: bool) -> None:
    model, data = Reader(absent=absent).eval(), texts(LENGTHS, absent)
    found = list(fxplain.explain_all(model, data, target=1, batch_size=8))
    alone = [shape for shape in shapes if shape[0] == 1]
    assert sorted(set(shapes) - set(alone)) == [(4, 12), (8, 24), (8, 32)]
    assert alone == [(1, sorted(LENGTHS)[-8])]  # the shortest of the first batch, held against it
    check(model, data, found, 1)


def test_where_padding_is_seen_by_the_model_there_is_none(shapes: list[tuple[int, ...]]) -> None:
    model, data = Reader(blind=True).eval(), texts([4, 5, 6, 7, 7, 7])
    found = list(fxplain.explain_all(model, data, target=0, batch_size=3))
    assert shapes == [(3, 8), *[(1, 7)] * 3, (1, 6), (1, 5), (1, 4)]
    check(model, data, found, 0)


def test_one_length_is_not_padded(shapes: list[tuple[int, ...]]) -> None:
    data = texts([5] * 6)
    list(fxplain.explain_all(Reader().eval(), data, target=0, batch_size=4))
    assert shapes == [(4, 5), (2, 5)]


@pytest.mark.parametrize("what", ["function", "mask", "several"])
def test_what_may_look_at_padding_goes_by_layouts(shapes: list[tuple[int, ...]], what: str) -> None:
    data = texts([4, 4, 6])
    target: Any = 0
    if what == "function":
        target = lambda out: out[:, 1]  # noqa: E731
    for entry in data:
        if what == "mask":
            entry["mask"][:, -1] = 0  # padded by the user
        if what == "several":
            entry["ids"] = torch.ones_like(entry["ids"])  # a mask by its looks
    found = list(fxplain.explain_all(Reader().eval(), data, target=target))
    assert sorted(shapes) == [(1, 6), (2, 4)]
    assert len(found) == 3


class Pairs(nn.Module):
    """A text asks another one, which has no mask: padding it would be seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids: Tensor, mask: Tensor, other: Tensor) -> Tensor:
        asked, read = self.embed(ids), self.embed(other)
        kept = (asked + self.cross(asked, read, read, need_weights=False)[0]) * mask[..., None]
        return self.head(kept.sum(1))  # type: ignore[no-any-return]


def test_an_input_that_happens_to_be_as_long_is_told_by_looking() -> None:
    model, data = Pairs().eval(), texts([4, 6, 5, 7])
    for entry, size in zip(data, [4, 6, 5, 3], strict=True):
        entry["other"] = torch.randint(20, (1, size))
    check(model, data, list(fxplain.explain_all(model, data, target=0)), 0)


def test_half_precision_is_held_against_itself_as_far_as_it_goes() -> None:
    model, data = Reader().bfloat16().eval(), texts([4, 6, 5, 7])
    found = list(fxplain.explain_all(model, data, target=0))
    assert [len(record.relevance["ids"]) for record in sorted(found, key=lambda r: r.index)] == [4, 6, 5, 7]
