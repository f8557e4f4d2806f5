"""Sequences of several lengths in one batch: padded places are of no token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import fxplain

LENGTHS = (3, 5)


class Ragged(nn.Module):
    """Each sample has its own length; the score reads its first token."""

    def __init__(self, batch_first: bool, side: str) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 3)
        self.batch_first, self.side = batch_first, side

    def padded(self, sequences: list[Tensor]) -> Tensor:
        stacked = pad_sequence(sequences, self.batch_first, padding_side=self.side)
        return stacked if self.batch_first else stacked.transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        lengths = LENGTHS[-len(x) :]
        tokens = self.embed(x)
        tokens = self.padded([row[:length] for row, length in zip(tokens, lengths, strict=True)])
        known = self.padded([torch.ones(length, 1) for length in lengths])[..., 0] > 0
        scores = self.query(tokens) @ self.key(tokens).mT
        tokens = tokens + scores.masked_fill(~known[:, None], -1e9).softmax(-1) @ self.value(tokens)
        return self.head(tokens[torch.arange(len(x)), known.int().argmax(1)])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_sequences_is_no_token(batch_first: bool, side: str) -> None:
    torch.manual_seed(0)
    model, x = Ragged(batch_first, side).eval(), torch.randn(2, 5, 6)
    traced = fxplain.trace(model, x)
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size) == ("self", 5)
    together, alone = (
        torch.stack([fxplain.explain(model, given, target=t).relevance["x"] for t in range(3)])
        for given in (x, x[1:])
    )
    torch.testing.assert_close(together[:, 1:], alone)
    assert together[:, 0, :3].sum() > 0
    assert together[:, 0, 3:].sum() == 0


class Zeros(nn.Module):
    """Two rows of zeros behind the tokens, which a mask hides or does not."""

    def __init__(self, hidden: bool, fused: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.hidden, self.fused = hidden, fused

    def forward(self, x: Tensor) -> Tensor:
        tokens = nn.functional.pad(self.embed(x), (0, 0, 0, 2))
        query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
        shown = torch.arange(tokens.shape[1]) < (x.shape[1] if self.hidden else 99)
        if self.fused:
            read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=shown[None])
        else:
            read = (query @ key.mT).masked_fill(~shown, -torch.inf).softmax(-1) @ value
        logits: Tensor = self.head((tokens + read)[:, 0])
        return logits


@pytest.mark.parametrize("fused", [True, False])
def test_padding_that_has_weight_is_told(fused: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6)
    for hidden in (True, False):
        result = fxplain.explain(Zeros(hidden, fused).eval(), x, target=1)
        assert any("no tokens too (padding)" in note for note in result.notes) != hidden
