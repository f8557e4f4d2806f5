"""Kinds of operations found in models that nobody tuned to, each in the smallest module that shows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain

BATCH, TOKENS, HEADS, DIM = 2, 6, 2, 4
WIDTH = HEADS * DIM


def heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], HEADS, DIM).transpose(1, 2)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of x [batch, token, width] in several heads."""
    weights = (heads(q) @ heads(k).transpose(-1, -2)).softmax(-1)
    return (weights @ heads(v)).transpose(1, 2).flatten(2)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Kind(nn.Module):
    """x + attention in some way; the score reads token 0."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def attend(self, x: Tensor) -> Tensor:
        return plain(*self.qkv(x).chunk(3, -1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head((x + self.attend(x))[:, 0])
        return logits


def tokens(length: int = TOKENS, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(BATCH, length, width, generator=torch.Generator().manual_seed(seed))


def ids(*shape: int) -> Tensor:
    return torch.randint(1, 20, shape, generator=torch.Generator().manual_seed(1))


def traced(model: nn.Module, *inputs: Tensor) -> tuple[Any, Any]:
    """The trace and an explanation, with what must hold of every one of them."""
    found = fxplain.trace(model.eval(), inputs)
    assert found.captured.verified <= 1e-5
    assert not [entry for entry in found.census if entry.role == "unknown"]
    results = [found.explain(inputs, target=target) for target in range(3)]
    values = torch.cat([v.flatten() for result in results for v in result.relevance.values()])
    assert bool(torch.isfinite(values).all())
    # of one target alone, what a token takes from its few keys may be negative
    assert float(values.sum()) > 0
    return found, results[0]


def kinds(found: Any) -> list[tuple[str, str, int, str, int, int]]:
    return [
        (a.kind, a.queries.name, a.queries.size, a.keys.name, a.keys.size, a.heads) for a in found.attentions
    ]


class Band(Kind):
    """Sliding chunks: overlapping windows in memory, and a band of the map that is padded into squares."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(0, 1) for part in map(heads, self.qkv(x).chunk(3, -1)))
        size = q.shape[1]
        wide = nn.functional.pad(k, (0, 0, 1, 1)).contiguous()
        near = wide.as_strided((len(k), size, 3, DIM), (wide.stride(0), wide.stride(1), wide.stride(1), 1))
        scores = torch.einsum("btd,btjd->btj", q, near)  # a band of three diagonals
        outside = torch.zeros(size, 3, dtype=torch.bool)
        outside[0, 0] = outside[-1, 2] = True
        band = scores.masked_fill(outside, float("-inf")).softmax(-1)
        square = (
            nn.functional.pad(band, (0, size)).flatten(1)[:, : size * (size + 2)].view(len(q), size, size + 2)
        )
        padded = nn.functional.pad(v, (0, 0, 1, 1))
        out = torch.einsum("btj,bjd->btd", square, padded)
        return out.view(len(x), HEADS, size, DIM).transpose(1, 2).flatten(2)


def test_a_band_of_the_map_padded_to_a_square() -> None:
    found, _ = traced(Band(), tokens())
    assert kinds(found) == [("self", "x", 6, "x", 6, HEADS)]
    (weights,) = found.maps((tokens(),))
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    assert float(weights[..., distance > 1].abs().max()) == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, 6))


class Pieces(Kind):
    """Scores written piece by piece into one tensor: rows stay rows, columns stay columns."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = map(heads, self.qkv(x).chunk(3, -1))
        scores = (q @ k.transpose(-1, -2)).flatten(-2)[..., :-1]  # a skewed view: both vary along all axes
        skewed = torch.zeros(BATCH, HEADS, TOKENS - 1, TOKENS + 1)
        skewed[:, :, :, 2:] = scores.unflatten(-1, (TOKENS - 1, TOKENS + 1))[..., 2:]
        skewed[:, :, 2:] = scores.unflatten(-1, (TOKENS - 1, TOKENS + 1))[:, :, 2:]
        skewed[:, :, :2, :2] = scores.unflatten(-1, (TOKENS - 1, TOKENS + 1))[:, :, :2, :2]
        straight = nn.functional.pad(skewed.flatten(-2), (0, 1)).unflatten(-1, (TOKENS, TOKENS))
        return (straight.softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_a_map_written_piece_by_piece() -> None:
    found, _ = traced(Pieces(), tokens())
    assert kinds(found) == [("self", "x", 6, "x", 6, HEADS)]


class Landmarks(Kind):
    """Nyström: tokens <- landmarks <- landmarks <- tokens; a product of maps is a map."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = map(heads, self.qkv(x).chunk(3, -1))
        few_q, few_k = (part.view(BATCH, HEADS, 2, 3, DIM).mean(-2) for part in (q, k))
        to_few = (q @ few_k.transpose(-1, -2)).softmax(-1)
        among = (few_q @ few_k.transpose(-1, -2)).softmax(-1)
        from_all = (few_q @ k.transpose(-1, -2)).softmax(-1)
        inverse = among / among.sum(-1).max()  # a scale shared by all samples makes none of them see another
        inverse = 2 * inverse - inverse @ among @ inverse
        return ((to_few @ inverse) @ (from_all @ v)).transpose(1, 2).flatten(2)


def test_landmarks_and_products_of_maps() -> None:
    found, result = traced(Landmarks(), tokens())
    sizes = [(a.kind, a.queries.size, a.keys.size, a.heads) for a in found.attentions]
    assert sizes == [("self", 2, 6, HEADS), ("self", 6, 2, HEADS)]
    assert result.relevance["x"].shape == (BATCH, TOKENS)


class SingleKey(Kind):
    """Keys pooled to one: the softmax is over a single place."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return plain(q, k.mean(1, keepdim=True), v.mean(1, keepdim=True))


def test_a_single_key_is_attended_to() -> None:
    found, _ = traced(SingleKey(), tokens())
    assert [(a.kind, a.queries.size, a.keys.size, a.heads) for a in found.attentions] == [
        ("self", 6, 1, HEADS)
    ]


def test_a_single_token_attends_to_itself() -> None:
    found = fxplain.trace(Kind().eval(), tokens(1))
    assert [(a.kind, a.queries.size, a.keys.size, a.heads) for a in found.attentions] == [
        ("self", 1, 1, HEADS)
    ]


class Pyramid(Kind):
    """Average pooling of [batch, 1, token, feature] as if features were a second axis of a grid."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        few = nn.functional.avg_pool2d(q[:, None], (2, 1), (2, 1))[:, 0]
        return plain(few, k, v).repeat_interleave(2, 1)


def test_pooling_with_features_on_the_grid() -> None:
    found, result = traced(Pyramid(), tokens())
    assert [(a.kind, a.queries.size, a.keys.size, a.heads) for a in found.attentions] == [
        ("self", 3, 6, HEADS)
    ]
    assert result.relevance["x"].shape == (BATCH, TOKENS)


class Ids(Kind):
    """Word ids through hashes and neighbours, boxes through a table for each coordinate, before attention."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words, self.part = nn.Embedding(20, WIDTH), nn.Embedding(20, WIDTH // 4)
        self.near = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, words: Tensor, boxes: Tensor | None = None) -> Tensor:
        if self.how == "hashes":
            x = torch.cat([self.part((words * n + n) % 20) for n in (3, 5, 7, 11)], -1)
        elif self.how == "neighbours":
            embedded = self.words(words)
            left = nn.functional.pad(embedded[:, 1:], (0, 0, 0, 1))
            right = nn.functional.pad(embedded[:, :-1], (0, 0, 1, 0))
            x = self.near(torch.cat([left, embedded, right], 2))
        else:
            assert boxes is not None
            x = self.words(words) + torch.cat([self.part(boxes[..., n]) for n in range(4)], -1)
        return super().forward(x)


def test_hashes_of_ids_are_the_ids_tokens() -> None:
    found, _ = traced(Ids("hashes"), ids(BATCH, TOKENS))
    assert kinds(found) == [("self", "words", 6, "words", 6, HEADS)]


def test_coordinates_of_boxes_give_way_to_words() -> None:
    found, _ = traced(Ids("boxes"), ids(BATCH, TOKENS), ids(BATCH, TOKENS, 4))
    assert kinds(found) == [("self", "words", 6, "words", 6, HEADS)]


def test_neighbours_side_by_side_are_mixed_sample_by_sample() -> None:
    found, result = traced(Ids("neighbours"), ids(BATCH, TOKENS))
    assert [(a.kind, a.queries.size, a.keys.size, a.heads) for a in found.attentions] == [
        ("self", 6, 6, HEADS)
    ]
    assert result.relevance["words"].shape == (BATCH, TOKENS)


class Channels(Kind):
    """Channel attention with a temperature, before an attention over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(part).transpose(-1, -2) for part in self.qkv(x).chunk(3, -1))  # [.., dim, token]
        weights = nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).transpose(-1, -2)
        mixed = (weights * self.temperature).softmax(-1) @ v
        x = x + mixed.permute(0, 3, 1, 2).flatten(2)
        return super().forward(torch.cat([self.cls.expand(len(x), -1, -1), x], 1))


def test_a_temperature_is_no_token() -> None:
    found, _ = traced(Channels(), tokens())
    assert [(a.kind, a.queries.size, a.keys.size) for a in found.attentions] == [("self", 7, 7)]
    assert "channel attention" in {entry.role for entry in found.census}


@pytest.mark.parametrize(
    "name", ["hardswish", "hardsigmoid", "mish", "softplus", "hardtanh", "celu", "relu6"]
)
def test_activations_keep_tokens(name: str) -> None:
    class Activated(Kind):
        def forward(self, x: Tensor) -> Tensor:
            grid = getattr(nn.functional, name)(x.transpose(1, 2))  # tokens on the last axis
            return super().forward(grid.transpose(1, 2) + x)

    found, _ = traced(Activated(), tokens())
    assert kinds(found) == [("self", "x", 6, "x", 6, HEADS)]


class Sampled(Kind):
    """Values sampled at points that each query asks for, weighed and summed: a step onto the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.weights = nn.Linear(WIDTH, 3 * 2), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        grid = self.points(x).view(len(x), TOKENS, 3, 2).tanh()
        image = x.transpose(1, 2).reshape(len(x), WIDTH, 2, 3)
        values = nn.functional.grid_sample(image, grid, align_corners=False)  # [batch, width, query, point]
        weights = self.weights(x).softmax(-1)[:, None]
        update = (values * weights).sum(-1).transpose(1, 2)
        logits: Tensor = self.head((x + update)[:, 0])
        return logits


def test_sampled_values_belong_to_the_query_that_asked() -> None:
    found, result = traced(Sampled(), tokens())
    assert kinds(found) == [("self", "x", 6, "x", 6, HEADS)]
    assert [(m.kind, m.queries.size, m.keys.size) for m in found.mixings] == [("self", 6, 6)]
    assert "sampling over points" in {entry.role for entry in found.census}
    assert [row[0][0] for row in result.readout] == [0, 0]


class Folded(Kind):
    """Windows of a grid [2, 3] taken apart and folded back, side by side or overlapping, before attention."""

    def __init__(self, kernel: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, self.padding = kernel, padding

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        grid = x.transpose(1, 2).reshape(BATCH, WIDTH, 2, 3)
        stride = self.kernel if self.padding == (0, 0) else (1, 1)
        windows = nn.functional.unfold(grid, self.kernel, padding=self.padding, stride=stride)
        back = nn.functional.fold(windows.tanh(), (2, 3), self.kernel, padding=self.padding, stride=stride)
        return super().forward(back.flatten(2).transpose(1, 2))


def test_windows_side_by_side_are_folded_back() -> None:
    found, _ = traced(Folded((1, 3), (0, 0)), tokens())
    assert kinds(found) == [("self", "x", 6, "x", 6, HEADS)] * 2
    assert not found.mixings


def test_overlapping_windows_make_new_tokens() -> None:
    found, result = traced(Folded((1, 3), (0, 1)), tokens())
    assert [(a.kind, a.queries.size, a.keys.size) for a in found.attentions] == [("self", 6, 6)] * 2
    assert [(m.queries.size, m.keys.size) for m in found.mixings] == [(6, 6)]
    assert found.attentions[0].keys.name != found.attentions[1].keys.name
    assert float(result.relevance["x"].sum()) > 0


class Outlook(Kind):
    """Each token says how much it takes from its left, itself and its right, with no keys at all."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Linear(WIDTH, 3)

    def attend(self, x: Tensor) -> Tensor:
        v = nn.functional.pad(self.qkv(x)[..., :WIDTH], (0, 0, 1, 1)).unfold(
            1, 3, 1
        )  # [batch, token, width, 3]
        weights = self.weigh(x).softmax(-1)[:, :, None]
        return (weights @ v.transpose(-1, -2)).flatten(2)


def test_weights_of_places_told_by_the_query() -> None:
    found, _ = traced(Outlook(), tokens())
    assert kinds(found) == [("self", "x", 6, "x", 6, 1)]
    (weights,) = found.maps((tokens(),))
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    assert float(weights[..., distance > 1].abs().max()) == 0


class Halves(Kind):
    """A learned table holds what queries are and where they are, side by side; both are of one query."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 2 * WIDTH))
        self.places, self.layer = nn.Linear(WIDTH, WIDTH), nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        where, what = self.table[None].expand(len(x), -1, -1).chunk(2, -1)
        asked = self.layer(self.places(where), x, x, need_weights=False)[0]
        what = what + self.attend(what)
        logits: Tensor = self.head((what + asked)[:, 0])
        return logits


def test_halves_of_the_features_are_of_one_token() -> None:
    found, _ = traced(Halves(), tokens())
    assert kinds(found) == [
        ("encoder_decoder", "table", 4, "x", 6, 2),
        ("self", "table", 4, "table", 4, HEADS),
    ]


class Structured(nn.Module):
    """Several maps of one layer over all tokens, each with a row of its own in the output, and no query."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.scores = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        weights = self.scores(self.hidden(tokens).tanh()).mT.softmax(-1)
        return self.head((weights @ tokens).flatten(1))


def test_pooling_by_several_maps_without_queries_is_attention() -> None:
    torch.manual_seed(0)
    model, x = Structured().eval(), torch.randn(2, 5, 6)
    traced = fxplain.trace(model, x)
    (attention,) = traced.attentions
    assert (attention.queries.size, attention.keys.size, attention.heads) == (3, 5, 1)
    with torch.no_grad():
        weights = model.scores(model.hidden(model.embed(x)).tanh()).mT.softmax(-1)
    torch.testing.assert_close(traced.maps(x)[0][:, 0], weights)
    assert bool((traced.explain(x).relevance["x"].sum(-1) > 0).all())


class Gathered(Kind):
    """Every query has keys of its own, gathered; several heads of queries share each head of keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(2 * WIDTH, WIDTH)
        self.register_buffer("seen", torch.stack([torch.randperm(TOKENS)[:3] for _ in range(TOKENS)]))

    def attend(self, x: Tensor) -> Tensor:
        _, k, v = self.qkv(x).chunk(3, -1)
        q = self.query(x).unflatten(-1, (HEADS, 2, DIM)).permute(0, 2, 3, 1, 4)
        k, v = (heads(part)[:, :, self.seen] for part in (k, v))
        weights = torch.einsum("bhgid,bhijd->bhgij", q, k).softmax(-1)
        read = torch.einsum("bhgij,bhijd->bhgid", weights, v)
        gathered: Tensor = self.out(read.permute(0, 3, 1, 2, 4).flatten(2))
        return gathered


def test_gathered_keys_of_grouped_heads() -> None:
    model, x = Gathered(), tokens()
    found, _ = traced(model, x)
    assert [(a.kind, a.queries.size, a.keys.size, a.heads) for a in found.attentions] == [
        ("self", TOKENS, TOKENS, 2 * HEADS)
    ]
    (map,) = found.maps((x,))
    torch.testing.assert_close(map.sum(-1), torch.ones(map.shape[:-1]))
    seen = torch.zeros(TOKENS, TOKENS, dtype=torch.bool).scatter(1, model.seen, True)  # type: ignore[arg-type]
    assert bool((map[..., ~seen] == 0).all())
    assert bool((map[..., seen] > 0).all())


class Bilinear(Kind):
    """A bilinear map of the tokens with themselves, place by place, before the attention."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.both, self.by_hand = nn.Bilinear(WIDTH, WIDTH, WIDTH, bias=False), by_hand

    def forward(self, x: Tensor) -> Tensor:
        if self.by_hand:
            pairs = (x[..., :, None] * x[..., None, :]).flatten(-2)
            return super().forward(nn.functional.linear(pairs, self.both.weight.flatten(1)))
        return super().forward(self.both(x, x))


def test_a_bilinear_map_goes_place_by_place() -> None:
    x, found = tokens(), []
    for by_hand in (True, False):
        torch.manual_seed(0)
        _, result = traced(Bilinear(by_hand), x)
        found.append(result.relevance["x"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
