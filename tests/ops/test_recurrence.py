"""Recurrences: encoders in one layer or a loop, and decoders that ask their states, one step at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.errors import NoAttentionError

BATCH, SOURCE, SAID, WIDTH, WORDS = 2, 5, 3, 8, 20


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    source, said = (torch.randint(WORDS, (BATCH, n), generator=draw) for n in (SOURCE, SAID))
    return source, said


class Additive(nn.Module):
    """Bahdanau attention of a single query, its scores spelled in several ways."""

    def __init__(self, spelled: str) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.both, self.score = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 1, bias=False)
        self.spelled = spelled
        self.map = nn.Identity()  # for hooks

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        if self.spelled == "products":
            scores = (query[:, None] * keys).sum(-1)
        elif self.spelled == "side by side":
            pairs = torch.cat([query[:, None].expand(-1, keys.shape[1], -1), keys], -1)
            scores = self.score(self.both(pairs).tanh()).squeeze(-1)
        else:
            scores = self.score((self.query(query)[:, None] + self.key(keys)).tanh()).squeeze(-1)
        weights = self.map(scores.softmax(-1))
        if self.spelled == "weighted":
            return (weights[..., None] * keys).sum(1)
        return (weights[:, None] @ keys)[:, 0]


class Translator(nn.Module):
    """A recurrent encoder, and a decoder whose state asks the encoder's states at every step."""

    def __init__(self, spelled: str = "added", recurrence: str = "GRU", both_ways: bool = False) -> None:
        super().__init__()
        self.source, self.said = nn.Embedding(WORDS, WIDTH), nn.Embedding(WORDS, WIDTH)
        size = WIDTH // 2 if both_ways else WIDTH
        layer, cell = getattr(nn, recurrence), getattr(nn, f"{recurrence}Cell")
        self.encoder = layer(WIDTH, size, batch_first=True, bidirectional=both_ways)
        self.cell, self.attend = cell(2 * WIDTH, WIDTH), Additive(spelled)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, source: Tensor, said: Tensor) -> Tensor:
        found, last = self.encoder(self.source(source))
        last = last[0] if isinstance(last, tuple) else last
        state = memory = last.transpose(0, 1).flatten(1)
        heard = []
        for step in range(said.shape[1]):
            given = torch.cat([self.said(said[:, step]), self.attend(state, found)], -1)
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(given, (state, memory))
            else:
                state = self.cell(given, state)
            heard.append(self.head(state))
        return torch.stack(heard, 1)


def kinds(found: Any) -> list[tuple[str, str, int, str, int]]:
    return [(a.kind, a.queries.name, a.queries.size, a.keys.name, a.keys.size) for a in found.attentions]


@pytest.mark.parametrize("spelled", ["added", "products", "side by side", "weighted"])
@pytest.mark.parametrize("recurrence", ["GRU", "LSTM", "RNN"])
def test_a_decoder_asks_an_encoder_step_by_step(spelled: str, recurrence: str) -> None:
    model = Translator(spelled, recurrence, both_ways=recurrence == "LSTM").eval()
    found = fxplain.trace(model, inputs())
    assert kinds(found) == [
        ("encoder_decoder", "encoder", 1, "source", SOURCE),
        ("encoder_decoder", "cell[0]", 1, "source", SOURCE),
        ("encoder_decoder", "cell[1]", 1, "source", SOURCE),
    ]
    assert {e.role for e in found.census} == {"attention", "recurrence"}
    results = [found.explain(inputs(), target=(2, word)) for word in range(3)]
    assert {row[0][0] for result in results for row in result.readout} == {int(found.spaces[-1].start + 2)}
    assert [note for note in results[0].notes if note.startswith("approximate: the recurrence in encoder")]
    assert sum(float(result.relevance["source"].sum()) for result in results) > 0
    # a word that comes later says nothing
    early = found.explain(inputs(), target=(0, 1))
    assert float(early.relevance["said"][:, 1:].abs().max()) == 0


def shares(cell: nn.GRUCell, parts: tuple[Tensor, Tensor, Tensor], gradient: Tensor) -> tuple[Tensor, Tensor]:
    """What the word, and the old state with its context, give to a new state: [batch, 1] each, sum 1."""
    word, context, old = (part.detach().requires_grad_() for part in parts)
    grown = torch.autograd.grad(cell(torch.cat([word, context], -1), old), [word, context, old], gradient)
    each = [(part * g).sum(-1, keepdim=True) for part, g in zip((word, context, old), grown, strict=True)]
    given = each[0].clamp(min=0), (each[1] + each[2]).clamp(min=0)
    total = given[0] + given[1]
    first, second = (torch.where(total > 0, part / total, 0.5).detach() for part in given)
    return first, second


@pytest.mark.parametrize("target", [2, 7, 11])
def test_states_carry_what_they_are_made_of(target: int) -> None:
    model = Translator().double().eval()
    source, said = inputs()
    result = fxplain.explain(model, (source, said), target=(1, target))
    # the same by hand: two steps, and the score read off the second state
    words = model.source(source)
    found, last = model.encoder(words)
    states, maps, made = [last[0]], [], []
    for step in range(2):
        word, ask = model.said(said[:, step]), model.attend
        scores = ask.score((ask.query(states[-1])[:, None] + ask.key(found)).tanh())
        maps.append(scores.squeeze(-1).softmax(-1))
        context = (maps[-1][:, None] @ found)[:, 0]
        made.append((word, context, states[-1]))
        states.append(model.cell(torch.cat([word, context], -1), states[-1]))
    score = model.head(states[-1])[:, target].sum()
    grown = torch.autograd.grad(score, [*states, *maps], retain_graph=True)
    of_states, of_maps = grown[:3], grown[3:]
    # the encoder's last state is made of all source words, and the row of a state of what it is made of
    (of_words,) = torch.autograd.grad(last[0], words, of_states[0], retain_graph=True)
    given = (words * of_words).sum(-1).clamp(min=0)
    row = given / given.sum(-1, keepdim=True)
    for step, (word, context, old) in enumerate(made):
        row = row + (of_maps[step] * maps[step]).clamp(min=0)  # eq. 10: neither side has attended before
        row = shares(model.cell, (word, context, old), of_states[step + 1])[1] * row
    row = row.detach()
    torch.testing.assert_close(result.relevance["source"], row)


class OneLayer(nn.Module):
    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(WORDS, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head, self.attends = nn.Linear(WIDTH, 3), attends

    def forward(self, source: Tensor) -> Tensor:
        found, _ = self.layer(self.embed(source))
        if self.attends:
            found = found + nn.functional.scaled_dot_product_attention(found, found, found)
        return self.head(found[:, -1])


def test_places_of_a_layer_are_the_tokens_at_their_time() -> None:
    found = fxplain.trace(OneLayer(True).eval(), inputs()[0])
    assert kinds(found) == [("self", "source", SOURCE, "source", SOURCE)]
    result = found.explain(inputs()[0], target=1)
    assert [row[0][0] for row in result.readout] == [SOURCE - 1] * BATCH
    assert float(result.relevance["source"].sum()) > 0


def test_a_recurrence_alone_is_no_attention() -> None:
    with pytest.raises(NoAttentionError, match="lstm in layer: recurrence"):
        fxplain.explain(OneLayer(False).eval(), inputs()[0])


class Loop(Translator):
    """Encoder and decoder written out: no cell, and states that start from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.old, self.new = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gates, self.hidden = nn.Linear(2 * WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, source: Tensor, said: Tensor) -> Tensor:
        words = self.source(source)
        state, found = words.new_zeros(len(source), WIDTH), []
        for step in range(source.shape[1]):
            state = torch.tanh(self.old(state) + self.new(words[:, step]))
            found.append(state)
        states, heard = torch.stack(found, 1), []
        for step in range(said.shape[1]):
            given = torch.cat([self.said(said[:, step]), self.attend(state, states)], -1)
            gate, fresh = (self.gates(given) + self.hidden(state)).chunk(2, -1)
            state = gate.sigmoid() * state + (1 - gate.sigmoid()) * fresh.tanh()
            heard.append(self.head(state))
        return torch.stack(heard, 1)


def test_loops_keep_the_newest_token() -> None:
    found = fxplain.trace(Loop().eval(), inputs())
    assert [(keys, size) for _, _, _, keys, size in kinds(found)] == [("source", SOURCE)] * SAID
    assert [kind for kind, *_ in kinds(found)][1:] == ["encoder_decoder"] * (SAID - 1)
    result = found.explain(inputs(), target=(2, 4))
    assert float(result.relevance["source"].sum()) > 0


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(WORDS, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, source: Tensor, lengths: Tensor) -> Tensor:
        pack, pad = nn.utils.rnn.pack_padded_sequence, nn.utils.rnn.pad_packed_sequence
        found, _ = self.layer(pack(self.embed(source), lengths, batch_first=True))
        states, _ = pad(found, batch_first=True, total_length=source.shape[1])
        mask = torch.arange(source.shape[1]) < lengths[:, None]
        weights = (states @ states.mT).masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        return self.head((weights @ states)[:, 0])


def test_packed_sequences_keep_their_tokens() -> None:
    source = inputs()[0]
    given = (source, torch.tensor([5, 3]))
    found = fxplain.trace(Packed().eval(), given)
    assert kinds(found) == [("self", "source", SOURCE, "source", SOURCE)]
    results = [found.explain(given, target=target) for target in range(3)]
    assert max(float(result.relevance["source"][0].max()) for result in results) > 0
    assert max(float(result.relevance["source"][1, 3:].abs().max()) for result in results) == 0


class Slots(nn.Module):
    """Slots compete for tokens, and a cell updates each of them (all samples' slots in one batch)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.slots = nn.Linear(6, 8), nn.Parameter(torch.randn(3, 8))
        self.query, self.key, self.value = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.cell, self.head = nn.GRUCell(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        slots = self.slots.expand(len(x), -1, -1)
        for _ in range(2):
            shares = (self.query(slots) @ self.key(tokens).mT).softmax(1) + 1e-8
            read = shares / shares.sum(-1, keepdim=True) @ self.value(tokens)
            slots = self.cell(read.reshape(-1, 8), slots.reshape(-1, 8)).view(slots.shape)
        return self.head(slots)


def test_a_cell_updates_each_of_several_tokens() -> None:
    torch.manual_seed(0)
    model, x = Slots().eval(), torch.randn(2, 5, 6)
    traced = fxplain.trace(model, x)
    assert [(a.kind, a.heads, a.queries.name, a.keys.name) for a in traced.attentions] == [
        ("encoder_decoder", 1, "slots", "x")
    ] * 2
    result = traced.explain(x, target=(1, 0))
    for sample in range(2):
        alone = fxplain.explain(model, x[sample : sample + 1], target=(1, 0))
        torch.testing.assert_close(result.relevance["x"][sample : sample + 1], alone.relevance["x"])


class FirstFrame(nn.Module):
    """A decoder over time whose first frame and first state are zeros that the model makes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.frames = nn.Embedding(20, 8), nn.Linear(4, 8)
        self.cell, self.ask, self.head = nn.LSTMCell(16, 8), nn.Linear(8, 8), nn.Linear(16, 4)

    def forward(self, ids: Tensor, frames: Tensor) -> Tensor:
        memory = self.words(ids)
        batch = memory.shape[0]
        given = torch.cat([torch.zeros(1, batch, 4), frames.transpose(0, 1)])
        given, made = self.frames(given), []
        state, cell = memory.new_zeros(batch, 8), memory.new_zeros(batch, 8)
        read = None
        for frame in given.unbind(0):
            if read is None:
                asked = self.ask(state.view(batch, 1, 8))
                read = ((asked * memory).sum(-1).softmax(-1).unsqueeze(-1) * memory).sum(1)
            state, cell = self.cell(torch.cat([frame, read], -1), (state, cell))
            weights = (memory @ self.ask(state).unsqueeze(-1)).squeeze(-1).softmax(-1)
            read = (weights.unsqueeze(1) @ memory).squeeze(1)
            made.append(self.head(torch.cat([state, read], -1)))
        return torch.stack(made, 1)


def test_a_first_frame_and_a_first_state_of_zeros() -> None:
    torch.manual_seed(0)
    model, inputs = FirstFrame().eval(), (torch.randint(0, 20, (2, 5)), torch.randn(2, 2, 4))
    traced = fxplain.trace(model, inputs)
    assert [a.queries.size for a in traced.attentions] == [1] * 4
    assert traced.attentions[0].queries.name == "new_zeros"
    assert len({a.queries.tokens for a in traced.attentions}) == 4
    assert all((a.kind, a.keys.name, a.keys.size) == ("encoder_decoder", "ids", 5) for a in traced.attentions)
    assert fxplain.check(model, inputs).understood
    together = traced.explain(inputs, target=(2, 1)).relevance["ids"]
    alone = fxplain.explain(model, tuple(part[1:] for part in inputs), target=(2, 1)).relevance["ids"]
    torch.testing.assert_close(together[1:], alone)


class Forward(nn.Module):
    """Weights of each step are scaled by those of the step before, moved on by one place or not."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(20, 8), nn.Embedding(20, 8)
        self.key, self.ask, self.score = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.cell, self.head = nn.LSTMCell(16, 8), nn.Linear(16, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.source(source)
        state = cell = memory.new_zeros(memory.shape[0], 8)
        weights, made = nn.functional.one_hot(torch.zeros_like(source[:, 0]), source.shape[1]).float(), []
        for word in self.target(target).unbind(1):
            scores = self.score((self.key(memory) + self.ask(state)[:, None]).tanh()).squeeze(-1)
            moved = weights + nn.functional.pad(weights, (1, 0))[:, :-1]
            weights = nn.functional.normalize((moved * scores.softmax(-1)).clamp(1e-6), p=1, dim=1)
            read = (memory * weights[..., None]).sum(1)
            state, cell = self.cell(torch.cat([word, read], -1), (state, cell))
            made.append(self.head(torch.cat([state, read], -1)))
        return torch.stack(made, 1)


def test_weights_that_are_scaled_by_those_of_the_step_before_are_of_their_own_query() -> None:
    torch.manual_seed(0)
    model, inputs = Forward().eval(), (torch.randint(0, 20, (2, 6)), torch.randint(0, 20, (2, 3)))
    found = [a.queries.tokens for a in fxplain.trace(model, inputs).attentions]
    assert len(found) == len(set(found)) == 3
    relevance = fxplain.explain(model, inputs, target=lambda out: out[:, 2].square().sum(-1)).relevance
    assert (relevance["source"].sum(-1) > 0).all()


class Gated(nn.Module):
    """Residuals through a gated unit, token by token; the unit as one operation, or written out."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.embed, self.head, self.written = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3), written
        self.first, self.second = (nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(2))
        self.gate = nn.GRUCell(WIDTH, WIDTH)

    def gated(self, new: Tensor, old: Tensor) -> Tensor:
        if not self.written:
            return self.gate(new.flatten(0, 1), old.flatten(0, 1)).view(old.shape)
        cell = self.gate
        reset, update, made = (new @ cell.weight_ih.T + cell.bias_ih).chunk(3, -1)
        reset_old, update_old, kept = (old @ cell.weight_hh.T + cell.bias_hh).chunk(3, -1)
        update = (update + update_old).sigmoid()
        return (1 - update) * (made + (reset + reset_old).sigmoid() * kept).tanh() + update * old

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.gated(self.first(x, x, x)[0], x)
        x = self.gated(self.second(x, x, x)[0], x)
        out: Tensor = self.head(x[:, 0])
        return out


def test_a_gated_residual_is_no_recurrence() -> None:
    x = torch.randn(2, 4, 5)
    found = []
    for written in (False, True):
        torch.manual_seed(0)
        traced = fxplain.trace(Gated(written).eval(), x)
        assert {entry.role for entry in traced.census} == {"attention"}
        assert not traced.notes
        found.append(traced.explain(x, target=1).relevance["x"])
    torch.testing.assert_close(*found)
