"""Probabilities of words that are read off the places of a text at which they stand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain


class Pointer(nn.Module):
    """A question scores the places of a text; each word gets the sum of its places' probabilities."""

    def __init__(self, asked: bool) -> None:
        super().__init__()
        self.words, self.score, self.asked = nn.Embedding(12, 8), nn.Linear(8, 1), asked
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, text: Tensor, question: Tensor) -> Tensor:
        read = self.mix(self.words(text))
        asked = read * self.words(question).mean(1)[:, None] if self.asked else read
        places = (asked.sum(-1) if self.asked else self.score(asked)[..., 0]).softmax(1)
        return torch.zeros(len(text), 12).scatter_add(1, text, places)


@pytest.mark.parametrize("asked", [False, True])
def test_a_word_that_stands_at_two_places_is_made_of_both(asked: bool) -> None:
    torch.manual_seed(0)
    text, question = torch.tensor([[4, 7, 9, 4, 11]]), torch.tensor([[1, 2]])
    traced = fxplain.trace(Pointer(asked).eval(), (text, question))
    merged = [m for m in traced.mixings if m.op == "scatter_add"]
    assert [(m.keys.name, m.keys.size) for m in merged] == [("text", 5)]
    read = {place for place, _ in traced.explain((text, question), target=4).readout[0]}
    words = {place for place in read if place in merged[0].queries.tokens}
    assert len(words) == 1
    assert len(read) == 1 + asked  # the question is one token that all places have met
