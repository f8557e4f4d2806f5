"""Inputs of other sizes, and of other values: one export for all sizes, and labels as of a fresh trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fxplain
from fxplain import layouts
from fxplain.capture import export as exporting
from fxplain.capture import sizes

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sizes argument of every export: None for one with numbers."""
    found: list[Any] = []
    own = exporting.program_of

    def counted(model: Any, tensors: Any, layout: Any, open_sizes: Any = None) -> Any:
        found.append(open_sizes)
        return own(model, tensors, layout, open_sizes)

    monkeypatch.setattr(exporting, "program_of", counted)
    monkeypatch.setattr(sizes, "program_of", counted)
    return found


def strategy(traced: fxplain.Traced) -> str:
    """How the layout used last was captured."""
    return list(traced._layouts.known.values())[-1].captured.strategy


def check_as_fresh(traced: fxplain.Traced, model: nn.Module, inputs: Any, **options: Any) -> None:
    found, fresh = traced.explain(inputs, **options), fxplain.trace(model, inputs).explain(inputs, **options)
    assert found.readout == fresh.readout
    assert found.notes == fresh.notes
    assert [(a.kind, a.queries, a.keys, a.heads, a.module) for a in found.attentions] == [
        (a.kind, a.queries, a.keys, a.heads, a.module) for a in fresh.attentions
    ]
    for name in fresh.relevance:
        torch.testing.assert_close(found.relevance[name], fresh.relevance[name])


def padded(batch: int, tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 20, (batch, tokens))
    mask = torch.ones_like(ids)
    mask[0, tokens - 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_one_export_serves_all_sizes_of_batch_and_sequence(exports: list[Any]) -> None:
    model = hf.BertForSequenceClassification(hf.BertConfig(**SMALL, vocab_size=20)).eval()
    traced = fxplain.trace(model, padded(1, 6))
    for place, shape in enumerate([(2, 6), (3, 7), (1, 5), (4, 9)]):
        traced.explain(padded(*shape))
        assert strategy(traced) == ("export" if place == 0 else "sizes")
    assert [each is not None for each in exports] == [False, False, True]
    check_as_fresh(traced, model, padded(2, 8))
    assert strategy(traced) == "sizes"


class Unrolled(nn.Module):
    """Goes over the tokens in a loop of Python's, so that a graph holds for one number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x, x, x)[0]
        return torch.stack([x[:, place] * (place + 1) for place in range(x.shape[1])]).sum(0)


def test_a_model_that_fixes_its_sizes_is_captured_for_each(exports: list[Any]) -> None:
    model = Unrolled().eval()
    traced = fxplain.trace(model, torch.randn(2, 3, 8))
    for tokens in (4, 5, 6):
        check_as_fresh(traced, model, torch.randn(2, tokens, 8))
        assert strategy(traced) == "export"
    reasons = [labelled.captured.reasons for labelled in traced._layouts.known.values()]
    assert ["sizes" in reason for reason in reasons] == [False, False, True, True]
    assert sum(each is not None for each in exports) == 1  # it is not tried again


class Switching(nn.Module):
    """Does something else with long inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.attend(x, x, x)[0]
        return y[:, 0] if x.shape[1] < 6 else y[:, 0] + y[:, 1].exp()


def test_a_branch_on_size_is_noticed() -> None:
    model = Switching().eval()
    traced = fxplain.trace(model, torch.randn(2, 3, 8))
    for tokens, how in ((4, "export"), (5, "sizes"), (7, "export"), (2, "sizes")):
        check_as_fresh(traced, model, torch.randn(2, tokens, 8))
        assert strategy(traced) == how


def test_sizes_of_one_are_captured_for_each() -> None:
    """torch takes a size of 1 for a number that stays."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    traced = fxplain.trace(model, torch.randn(1, 3, 8))
    traced.explain(torch.randn(3, 1, 8), target=(0, 1))
    traced.explain(torch.randn(4, 1, 8), target=(0, 1))
    assert strategy(traced) == "export"
    traced.explain(torch.randn(4, 2, 8), target=(0, 1))
    assert strategy(traced) == "sizes"


def test_layouts_that_were_not_used_for_long_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "MOST_LAYOUTS", 2)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    traced = fxplain.trace(model, torch.randn(2, 3, 8))
    for tokens in (4, 3, 5, 3):
        traced.explain(torch.randn(2, tokens, 8), target=(0, 1))
    assert [each.captured.layout.tensors[0].shape[1] for each in traced._layouts.known.values()] == [5, 3]


class EndOfText(nn.Module):
    """Reads the token of the largest id, wherever it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.layer(self.embed(ids))
        read: Tensor = x[torch.arange(ids.shape[0]), ids.argmax(-1)]
        return read


class Scattered(nn.Module):
    """Image tokens take the places of the word 19."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.embed = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        image = self.patches(pixels).flatten(2).mT
        words = self.embed(ids)
        x = self.layer(words.masked_scatter((ids == 19)[..., None].expand_as(words), image))
        last: Tensor = x[:, -1]
        return last


def ended(tokens: int, *places: int) -> Tensor:
    ids = torch.randint(0, 18, (len(places), tokens))
    ids[torch.arange(len(places)), torch.tensor(places)] = 19
    return ids


def test_the_token_that_is_read_is_looked_for_in_every_input() -> None:
    model = EndOfText().eval()
    traced = fxplain.trace(model, ended(6, 2, 5))
    for ids in (ended(6, 4, 1), ended(6, 2, 5), ended(7, 6, 0), ended(8, 3, 5), ended(8, 7, 1), ended(5, 2)):
        check_as_fresh(traced, model, ids, target=1)
        read = [row[0][0] for row in traced.explain(ids, target=1).readout]
        assert read == ids.argmax(-1).tolist()
    assert strategy(traced) == "sizes"


def test_image_tokens_are_looked_for_in_every_input() -> None:
    model = Scattered().eval()

    def inputs(tokens: int, *places: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(0, 18, (1, tokens))
        ids[0, list(places)] = 19
        return torch.randn(1, 3, 4, 4), ids

    traced = fxplain.trace(model, inputs(7, 0, 1, 2, 3))
    for case in (inputs(7, 2, 3, 4, 5), inputs(7, 0, 1, 4, 5), inputs(8, 1, 2, 3, 4), inputs(9, 4, 5, 6, 7)):
        check_as_fresh(traced, model, case, target=1)
    assert strategy(traced) == "sizes"
