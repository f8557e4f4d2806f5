"""Inputs that do not all have their samples on one axis; raw inputs that are attended to as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.many.records import Sample
from fxplain.many.samples import groups

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


class Viewer(nn.Module):
    """Moments [time, sample, feature] look at the patches of pictures [sample, channel, row, column]."""

    def __init__(self) -> None:
        super().__init__()
        self.moments, self.patches = nn.Linear(5, WIDTH), nn.Conv2d(3, WIDTH, 2, 2)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, moments: Tensor, picture: Tensor) -> Tensor:
        x, y = self.moments(moments.transpose(0, 1)), self.patches(picture).flatten(2).mT
        logits: Tensor = self.head((x + (x @ y.mT).softmax(-1) @ y)[:, -1])
        return logits


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_inputs_may_have_their_samples_on_different_axes(batch: int) -> None:
    """No map tells them apart: moments do not read each other, and the output is of the last one alone."""
    model, inputs = Viewer().eval(), (torch.randn(OLD, batch, 5), torch.randn(batch, 3, 4, 4))
    traced = fxplain.trace(model, inputs)
    assert traced.batch_axes == {"moments": 1, "picture": 0}
    assert not any("ambiguous" in note for note in traced.notes)
    for method in ("relevancy", "random"):
        result = traced.explain(inputs, target=1, method=method)
        assert result.relevance["moments"].shape == result.relevance["picture"].shape == (batch, OLD)
        for sample in range(batch):
            own = inputs[0][:, [sample]], inputs[1][[sample]]
            alone = fxplain.explain(model, own, target=1, method=method)
            for name, values in alone.relevance.items():
                torch.testing.assert_close(values[0], result.relevance[name][sample])


def test_entries_of_a_dataset_are_put_together_along_each_inputs_own_axis() -> None:
    model = Viewer().eval()
    data = [(torch.randn(OLD, 1, 5), torch.randn(1, 3, 4, 4)) for _ in range(3)]
    axes = fxplain.trace(model, data[0]).batch_axes
    (group,) = groups(model, [(i, Sample(each)) for i, each in enumerate(data)], 3, axes, {})
    assert [tuple(tensor.shape) for tensor in group.inputs] == [(OLD, 3, 5), (3, 3, 4, 4)]


def test_where_both_axes_fit_the_samples_that_meet_tell() -> None:
    """As many moments as samples: the first axis of all inputs fits, but would let samples meet."""
    model, inputs = Viewer().eval(), (torch.randn(2, 2, 5), torch.randn(2, 3, 4, 4))
    assert fxplain.trace(model, inputs).batch_axes == {"moments": 1, "picture": 0}


class Asking(nn.Module):
    """Tokens that read a table [entry, feature], the same for all samples, and never each other; the last is
    read."""

    def __init__(self, time_first: bool) -> None:
        super().__init__()
        self.time_first = time_first
        self.embed, self.entries, self.head = nn.Linear(5, WIDTH), nn.Linear(7, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x, y = self.embed(x.transpose(0, 1) if self.time_first else x), self.entries(table)
        logits: Tensor = self.head((x + (x @ y.mT).softmax(-1) @ y)[:, -1])
        return logits


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("time_first", [True, False])
def test_the_outputs_tell_where_no_map_does(batch: int, time_first: bool) -> None:
    x = torch.randn(OLD, batch, 5) if time_first else torch.randn(batch, OLD, 5)
    inputs = x, torch.randn(TOKENS, 7)
    traced = fxplain.trace(Asking(time_first).eval(), inputs)
    assert traced.batch_axes == {"x": int(time_first), "table": None}
    assert traced.explain(inputs, target=1).relevance["x"].shape == (batch, OLD)
    # one output may be that of a single sample, or of the last of several
    doubted = any(note.startswith("ambiguous: the samples") for note in traced.notes)
    assert doubted == (batch == 1 and time_first)
