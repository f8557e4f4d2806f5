"""Notes on attention sinks: planted ones are told, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.rules.sinks import is_sink, parked_on, short

SINK = 7


class Layer(nn.Module):
    """Two heads whose queries all like the sink's key; what it holds cancels between the heads."""

    def __init__(self, strength: float, causal: bool, value: float) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.causal = causal
        with torch.no_grad():
            for head in (0, 4):
                self.q.bias[head] = strength
                self.k.weight[head] = torch.eye(8)[0]  # the feature that the sink alone has
            self.v.weight[:, 0] = value
            self.v.bias.zero_()
            self.out.bias.zero_()
            self.out.weight[:, 4:] = -self.out.weight[:, :4]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, strengths: tuple[float, ...], causal: bool, value: float) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(Layer(strength, causal, value) for strength in strengths)
        with torch.no_grad():
            self.words.weight[:, 0] = 0
            self.words.weight[SINK] = torch.eye(8)[0]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x[:, -1])
        return out


def model(*strengths: float, causal: bool = True, value: float = 0.1) -> Model:
    torch.manual_seed(0)
    return Model(strengths, causal, value).eval()


IDS = torch.tensor([[SINK, 3, 2, 5, 1, 4, 9, 8]])


def told(result: fxplain.Result) -> list[str]:
    return [note for note in result.notes if "an attention sink" in note]


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("mode", ["rows", "matrix"])
def test_a_planted_sink_is_told_wherever_it_stands(place: int, mode: Any) -> None:
    ids = torch.cat([IDS[:, 1 : place + 1], IDS[:, :1], IDS[:, place + 1 :]], 1)
    traced = fxplain.trace(model(12.0, 12.0, 12.0, causal=False), ids)
    result = traced.explain(ids, target=1, mode=mode)
    (note,) = told(result)
    share = float(result.relevance["ids"][0, place] / result.relevance["ids"][0].sum())
    assert note == (
        f"{share:.0%} of the relevance lies on token {place} of ids, an attention sink: in 3 of 3 attentions "
        "most queries attend to it most, and its values are short; what lies there says little of the "
        "prediction: method='net_relevancy' lets heads cancel there"
    )


def test_where_heads_cancel_nothing_lies_on_the_sink() -> None:
    found = fxplain.compare(model(12.0, 12.0), IDS, ["relevancy", "net_relevancy", "rollout"], target=1)
    shares = {
        name: float(r.relevance["ids"][0, 0] / r.relevance["ids"][0].sum()) for name, r in found.items()
    }
    assert shares["relevancy"] > 0.5
    assert shares["net_relevancy"] < 0.2
    assert [name for name, result in found.items() if told(result)] == ["relevancy", "rollout"]
    (note,) = told(found["rollout"])
    assert "net_relevancy" not in note, "that would be another question"


def test_a_token_that_everyone_attends_to_and_that_hands_over_much_is_none() -> None:
    found = fxplain.compare(model(12.0, 12.0, value=3.0), IDS, ["relevancy", "rollout"], target=1)
    assert all(float(r.relevance["ids"][0, 0] / r.relevance["ids"][0].sum()) > 0.5 for r in found.values())
    assert not any(told(result) for result in found.values())


def test_the_kernel_and_maps_that_are_written_out_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = told(fxplain.explain(model(12.0, 12.0, causal=False), IDS, target=1))

    def written_out(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        return (q @ k.mT / 2).softmax(-1) @ v

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", written_out)
    assert told(fxplain.explain(model(12.0, 12.0, causal=False), IDS, target=1)) == fused != []


def test_a_token_that_most_attentions_do_not_attend_to_is_none() -> None:
    result = fxplain.explain(model(12.0, 0.0, 0.0), IDS, target=1, method="rollout")
    assert float(result.relevance["ids"][0, 0] / result.relevance["ids"][0].sum()) > 0.25
    assert not told(result)


@pytest.mark.parametrize("seed", range(5))
def test_no_sink_is_seen_in_attention_at_random(seed: int) -> None:
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    x = torch.randn(2, 6, 8)
    found = fxplain.compare(encoder, x, ["relevancy", "rollout", "raw_attention"], target=(0, 3))
    assert not any(told(result) for result in found.values())


def test_samples_are_counted() -> None:
    ids = torch.cat([IDS, IDS.roll(4, 1), IDS.clone().index_fill_(1, torch.tensor([0]), 6)])
    result = fxplain.explain(model(12.0, 12.0, causal=False), ids, target=1)
    notes = told(result)
    assert len(notes) == 2, "two samples have a sink, at different places; the third has none"
    assert all("(in 1 of 3 samples)" in note for note in notes)


def test_long_inputs_are_looked_at_in_their_last_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxplain.attribution.sinks.ROWS", 3)
    assert told(fxplain.explain(model(12.0, 12.0), IDS, target=1))


def test_a_query_that_sees_one_other_key_says_nothing() -> None:
    """In the second row of a causal map all the weight lies on the first token."""
    rows = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])[None]
    own = torch.eye(2, 4, dtype=torch.bool)
    assert not parked_on(rows, own).any()


def test_one_attention_makes_no_sink() -> None:
    assert not is_sink(torch.tensor(1), torch.tensor(1))
    assert not is_sink(torch.tensor(2), torch.tensor(4))
    assert is_sink(torch.tensor(3), torch.tensor(4))
    assert short(torch.tensor([[0.4, 0.9, 1.1]])).tolist() == [[True, False, False]]
