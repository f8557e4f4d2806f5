"""One token laid out several times: in frames that are joined later, or under the rows of a table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain

BATCH, FRAMES, HEADS, DIM = 2, 3, 2, 4
WIDTH = HEADS * DIM


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Attend(nn.Module):
    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.map = nn.Identity()
        self.fused = fused

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        y = x if y is None else y
        pairs = ((self.q, x), (self.k, y), (self.v, y))
        q, k, v = (layer(t).unflatten(-1, (HEADS, DIM)).transpose(-2, -3) for layer, t in pairs)
        if self.fused:
            o = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            o = self.map((q @ k.mT / 2).softmax(-1)) @ v
        return self.out(o.transpose(-2, -3).flatten(-2))


class Frames(nn.Module):
    """Learned queries read each frame alone; then those of all frames are read together."""

    def __init__(self, how: str, fused: bool = False, count: int = 2) -> None:
        super().__init__()
        self.how = how
        self.patch, self.query = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.randn(1, count, WIDTH))
        self.read, self.first = Attend(fused), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.all, self.head = Attend(fused), nn.Linear(WIDTH, 3)

    def forward(self, video: Tensor) -> Tensor:
        batch, frames = video.shape[:2]
        x = self.patch(video.flatten(0, 1)).flatten(2).mT
        if self.how == "folded":
            q = self.query.expand(batch * frames, -1, -1)
        elif self.how == "frames_first":
            x = x.unflatten(0, (batch, frames)).transpose(0, 1).flatten(0, 1)
            q = self.query.repeat(frames * batch, 1, 1)
        else:
            x = x.unflatten(0, (batch, frames))
            q = self.query[None].expand(batch, frames, -1, -1)
        q = q + self.read(q, x)
        if self.how == "frames_first":
            q = q.unflatten(0, (frames, batch)).transpose(0, 1)
        q = torch.cat([self.first.expand(batch, -1, -1), q.reshape(batch, -1, WIDTH)], 1)
        logits: Tensor = self.head((q + self.all(q))[:, 0])
        return logits


def reference(model: Frames, video: Tensor, target: int) -> Tensor:
    """R of the first token to the patches of all frames, by hand, for one sample."""
    maps: list[Tensor] = []
    hooks = [m.map.register_forward_hook(lambda *a: maps.append(a[2])) for m in (model.read, model.all)]
    score = model(video[None])[0, target]
    for hook in hooks:
        hook.remove()
    grown = torch.autograd.grad(score, maps)
    read, whole = (
        (a * g).clamp(min=0).mean(-3).detach() for a, g in zip(maps, grown, strict=True)
    )  # [frame, query, patch], [1, 1 + queries, 1 + queries]
    frames, queries, patches = read.reshape(-1, *read.shape[-2:]).shape
    cross = torch.zeros(1 + frames * queries, frames * patches)
    for frame, own in enumerate(read.reshape(-1, queries, patches)):
        rows = slice(1 + frame * queries, 1 + (frame + 1) * queries)
        cross[rows, frame * patches : (frame + 1) * patches] = own
    return (whole[0] @ cross)[0]


@pytest.mark.parametrize("how", ["folded", "frames_first", "axis"])
def test_queries_that_read_a_frame_each_are_several_tokens(how: str) -> None:
    model, video = Frames(how).eval(), torch.randn(BATCH, FRAMES, 3, 8, 8)
    traced = fxplain.trace(model, video)
    found = [(a.kind, a.queries.size, a.keys.size, a.heads) for a in traced.attentions]
    assert found == [("encoder_decoder", 6, 12, HEADS), ("self", 7, 7, HEADS)]
    assert {space.name: space.size for space in traced.spaces} == {"video": 12, "query": 6, "first": 1}
    for target in range(3):
        result = traced.explain(video, target=target)
        wanted = torch.stack([reference(model, one, target) for one in video])
        torch.testing.assert_close(result.relevance["video"], wanted)


def test_it_is_so_where_all_keys_are_one_token() -> None:
    for fused in (False, True):
        traced = fxplain.trace(Frames("folded", fused, count=1).eval(), torch.randn(BATCH, FRAMES, 3, 8, 8))
        found = [(a.kind, a.queries.size, a.keys.size, a.heads) for a in traced.attentions]
        assert found == [("encoder_decoder", 3, 12, HEADS), ("self", 4, 4, HEADS)]


class Asked(nn.Module):
    """A task, repeated under learned queries that tell where."""

    def __init__(self, repeated: bool) -> None:
        super().__init__()
        self.task, self.where = nn.Linear(5, WIDTH), nn.Embedding(4, WIDTH)
        self.read, self.among, self.patch = Attend(), Attend(), nn.Linear(6, WIDTH)
        self.head, self.repeated = nn.Linear(WIDTH, 3), repeated

    def forward(self, picture: Tensor, task: Tensor) -> Tensor:
        query = self.task(task).unsqueeze(1)
        query = query.repeat(1, 4, 1) if self.repeated else query
        query = query + self.where.weight
        query = query + self.read(query, self.patch(picture))
        logits: Tensor = self.head(query + self.among(query))
        return logits


@pytest.mark.parametrize("repeated", [True, False])
def test_rows_of_a_table_that_one_token_is_added_to_are_the_queries(repeated: bool) -> None:
    inputs = torch.randn(BATCH, 7, 6), torch.randn(BATCH, 5)
    traced = fxplain.trace(Asked(repeated).eval(), inputs)
    found = [(a.kind, a.queries.name, a.queries.size, a.keys.name, a.heads) for a in traced.attentions]
    assert found == [
        ("encoder_decoder", "where.weight", 4, "picture", HEADS),
        ("self", "where.weight", 4, "where.weight", HEADS),
    ]
    result = traced.explain(inputs, target=(2, 1))
    assert bool((result.relevance["picture"].sum(-1) > 0).all())
    joins = [(m.op, m.queries.name, m.keys.name) for m in traced.mixings]
    assert ("add", "where.weight", "task") in joins


def test_a_stream_that_is_added_place_by_place_is_told() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sound, self.sight = nn.Linear(4, WIDTH), nn.Linear(6, WIDTH)
            self.attend, self.head = Attend(), nn.Linear(WIDTH, 3)

        def forward(self, audio: Tensor, video: Tensor) -> Tensor:
            logits: Tensor = self.head(self.attend(self.sound(audio) + self.sight(video))[:, 0])
            return logits

    result = fxplain.explain(Both().eval(), (torch.randn(1, 5, 4), torch.randn(1, 5, 6)), target=1)
    assert any(note.startswith("video has no tokens of its own") for note in result.notes)


class Decoder(nn.Module):
    """A layer of a recurrence called for one word at a time, with what was attended to beside the word."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 20)
        self.encoder, self.step = (
            layer(WIDTH, WIDTH, batch_first=True),
            layer(2 * WIDTH, WIDTH, batch_first=True),
        )
        self.ask, self.key, self.score = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, source: Tensor, said: Tensor) -> Tensor:
        states, last = self.encoder(self.words(source))
        outputs = []
        for word in self.words(said).unbind(1):
            hidden = last[0] if isinstance(last, tuple) else last
            query = self.ask(hidden.transpose(0, 1))
            weights = self.score(torch.tanh(query + self.key(states))).mT.softmax(-1)
            read = torch.bmm(weights, states)
            output, last = self.step(torch.cat([word.unsqueeze(1), read], -1), last)
            outputs.append(self.head(output))
        return torch.cat(outputs, 1)


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
def test_a_recurrent_layer_for_one_place_of_time_is_a_cell(layer: Any) -> None:
    inputs = torch.randint(1, 20, (BATCH, 5)), torch.randint(1, 20, (BATCH, 3))
    traced = fxplain.trace(Decoder(layer).eval(), inputs)
    found = [(a.kind, a.queries.size, a.keys.name, a.keys.size) for a in traced.attentions]
    assert found == [("encoder_decoder", 1, "source", 5)] * 3
    assert len({a.queries.name for a in traced.attentions}) == 3
    assert not traced.lost
    words = [traced.explain(inputs, target=(2, word)).relevance["source"] for word in range(6)]
    assert bool((torch.stack(words).sum((0, 2)) > 0).all())


def test_an_empty_part_lies_nowhere() -> None:
    class Turned(Attend):
        """Features behind the last that is turned stay as they are: here there are none."""

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            x = torch.cat([x[..., :WIDTH].flip(-1), x[..., WIDTH:]], -1)
            return super().forward(x)[:, 0]

    (attention,) = fxplain.trace(Turned().eval(), torch.randn(BATCH, 5, WIDTH)).attentions
    assert (attention.kind, attention.keys.size) == ("self", 5)


class TwoStreams(nn.Module):
    """One learned token at every place predicts the word there: each copy may see other words."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 3)
        self.guess = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.ask, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.fused = fused

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        guess, hidden = self.guess.expand_as(x), torch.eye(ids.shape[1], dtype=torch.bool)
        query, key, value = self.ask(guess), self.key(x), self.value(x)
        if self.fused:
            read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=~hidden)
        else:
            read = (query @ key.mT).masked_fill(hidden, -torch.inf).softmax(-1) @ value
        logits: Tensor = self.head(guess + read)
        return logits


@pytest.mark.parametrize("fused", [True, False])
def test_copies_that_see_other_words_each_are_several_queries(fused: bool) -> None:
    ids = torch.randint(1, 20, (BATCH, 5))
    traced = fxplain.trace(TwoStreams(fused).eval(), ids)
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size, attention.keys.size, attention.heads) == (
        "encoder_decoder",
        5,
        5,
        1,
    )
    for place in range(5):  # a copy does not see the word at its own place
        relevance = traced.explain(ids, target=(place, 1)).relevance["ids"]
        assert bool((relevance[:, place] == 0).all())


def test_one_token_for_all_heads_is_one() -> None:
    class Shared(Attend):
        """One query asks with several heads, which share keys and values."""

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            query = self.q(x[:, :1]).unflatten(-1, (HEADS, DIM)).transpose(1, 2)
            key, value = self.k(x)[:, None, :, :DIM], self.v(x)[:, None, :, :DIM]
            return self.out(((query @ key.mT).softmax(-1) @ value).transpose(1, 2).flatten(1))

    (attention,) = fxplain.trace(Shared().eval(), torch.randn(BATCH, 5, WIDTH)).attentions
    assert (attention.queries.size, attention.heads) == (1, HEADS)


def test_heads_in_the_batch_axis_are_pooled_onto_the_same_places() -> None:
    class PooledHeads(Attend):
        """Keys and values are convolved head by head, folded into the batch."""

        def __init__(self) -> None:
            super().__init__()
            self.patch, self.pool = nn.Conv2d(3, WIDTH, 2, 2), nn.Conv2d(DIM, DIM, 2, 2)

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            x = self.patch(x).flatten(2).mT
            q, k, v = (
                layer(x).unflatten(-1, (HEADS, DIM)).transpose(1, 2) for layer in (self.q, self.k, self.v)
            )
            k, v = (
                self.pool(t.flatten(0, 1).mT.unflatten(-1, (4, 4))).flatten(2).mT.unflatten(0, (-1, HEADS))
                for t in (k, v)
            )
            x = x + self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
            return x[:, 0]

    (attention,) = fxplain.trace(PooledHeads().eval(), torch.randn(BATCH, 3, 8, 8)).attentions
    assert (attention.queries.size, attention.keys.size, attention.heads) == (16, 4, HEADS)


def test_a_sequence_moved_along_itself_is_mixed_and_not_routed() -> None:
    class Lags(Attend):
        """What came some steps before, weighed by how well it fits."""

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            x, lags = self.v(x), torch.tensor([1, 3])
            weights = self.q(x).mean(1)[:, :2].softmax(-1)
            place = torch.arange(x.shape[1])
            for lag in range(2):
                index = ((place - lags[lag]) % x.shape[1])[None, :, None].expand_as(x)
                x = x + x.gather(1, index) * weights[:, lag, None, None]
            return self.out(x)[:, -1]

    traced = fxplain.trace(Lags().eval(), torch.randn(BATCH, 5, WIDTH))
    (entry,) = (entry for entry in traced.census if entry.op == "softmax")
    assert (entry.role, entry.reason) == (
        "token mixing",
        "weighs copies of the sequence that are moved along it",
    )
