"""Inputs that do not all have their samples on one axis; raw inputs that are attended to as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain

BATCH, TOKENS, OLD, WIDTH = 2, 6, 4, 8


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Remembering(nn.Module):
    """Words [sample, time] beside states of earlier ones [time, sample, feature]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 3)
        self.attend = nn.MultiheadAttention(WIDTH, 2)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        x = self.words(ids).transpose(0, 1)
        both = torch.cat([memory, x], 0)
        logits: Tensor = self.head((x + self.attend(x, both, both, need_weights=False)[0])[-1])
        return logits


def test_memories_have_their_samples_on_the_second_axis() -> None:
    model, ids, memory = (
        Remembering().eval(),
        torch.randint(1, 20, (BATCH, TOKENS)),
        torch.randn(OLD, BATCH, 8),
    )
    traced = fxplain.trace(model, (ids, memory))
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size, attention.keys.size) == ("self", TOKENS, OLD + TOKENS)
    result = traced.explain((ids, memory), target=1)
    assert {name: values.shape for name, values in result.relevance.items()} == {
        "ids": (BATCH, TOKENS),
        "memory": (BATCH, OLD),
    }
    for sample in range(BATCH):
        inputs = ids[sample : sample + 1], memory[:, sample : sample + 1]
        alone = fxplain.explain(model, inputs, target=1)
        for name, values in alone.relevance.items():
            torch.testing.assert_close(values[0], result.relevance[name][sample])


def test_keys_of_several_samples_are_none_of_one_query() -> None:
    """Learned queries have no sample of their own; what they weigh together is of one."""

    class Latents(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.head = nn.Parameter(torch.randn(3, 1, WIDTH)), nn.Linear(WIDTH, 3)
            self.attend = nn.MultiheadAttention(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            query = self.query.expand(-1, x.shape[1], -1)
            logits: Tensor = self.head(self.attend(query, x, x, need_weights=False)[0].mean(0))
            return logits

    (attention,) = fxplain.trace(Latents().eval(), torch.randn(5, BATCH, WIDTH)).attentions
    assert (attention.keys.size, attention.heads) == (5, 2)


def test_raw_data_may_be_the_values() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.head = nn.Linear(5, WIDTH), nn.Linear(7, WIDTH), nn.Linear(7, 3)

        def forward(self, asking: Tensor, data: Tensor) -> Tensor:
            weights = (self.query(asking) @ self.key(data).mT).softmax(-1)
            logits: Tensor = self.head((weights @ data)[:, 0])
            return logits

    inputs = torch.randn(BATCH, 3, 5), torch.randn(BATCH, TOKENS, 7)
    (attention,) = fxplain.trace(Raw().eval(), inputs).attentions
    assert (attention.kind, attention.queries.name, attention.keys.name) == (
        "encoder_decoder",
        "asking",
        "data",
    )
    assert attention.keys.size == TOKENS


def test_positions_beside_ids_are_no_second_sequence() -> None:
    """A cache that is written at the places that an input tells, which are the same for all samples."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 3)
            self.key, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.register_buffer("keys", torch.zeros(BATCH, 1, 8, WIDTH))
            self.register_buffer("values", torch.zeros(BATCH, 1, 8, WIDTH))

        def forward(self, ids: Tensor, place: Tensor) -> Tensor:
            x = self.words(ids)
            keys, values = self.keys.clone(), self.values.clone()
            keys[:, :, place], values[:, :, place] = self.key(x)[:, None], self.value(x)[:, None]
            seen = torch.arange(8)[None] <= place[:, None]
            read = nn.functional.scaled_dot_product_attention(x[:, None], keys, values, attn_mask=seen)
            logits: Tensor = self.head(x + read[:, 0])
            return logits

    inputs = torch.randint(1, 20, (BATCH, 5)), torch.arange(5)
    traced = fxplain.trace(Cached().eval(), inputs)
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size, attention.keys.size) == ("self", 5, 5)
    assert traced.explain(inputs, target=(4, 1)).relevance["ids"].shape == (BATCH, 5)
