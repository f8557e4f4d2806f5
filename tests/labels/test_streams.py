"""Samples and streams: who a token is, and whose, where batches are folded, packed, repeated or compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain

BATCH, TOKENS, HEADS, DIM = 2, 6, 2, 4
WIDTH = HEADS * DIM


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Attend(nn.Module):
    """Attention of x [batch, token, width] to y in two heads, after a residual; ``fused`` by one kernel."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fused = fused

    def forward(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        y = x if y is None else y
        q, k, v = (
            layer(t).unflatten(-1, (HEADS, DIM)).transpose(1, 2)
            for layer, t in ((self.q, x), (self.k, y), (self.v, y))
        )
        if self.fused:
            out = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        else:
            scores = q @ k.transpose(-1, -2) / DIM**0.5
            out = (scores if mask is None else scores.masked_fill(~mask, -1e9)).softmax(-1) @ v
        return x + self.out(out.transpose(1, 2).flatten(2))


def alone(model: nn.Module, inputs: tuple[Tensor, ...], sample: int, target: Any) -> Any:
    return fxplain.explain(model.eval(), tuple(x[sample : sample + 1] for x in inputs), target)


def check(model: nn.Module, *inputs: Tensor, target: Any = 1, separate: bool = True) -> tuple[Any, Any]:
    """The trace and an explanation; each sample's is what it gets alone."""
    found = fxplain.trace(model.eval(), inputs)
    result = found.explain(inputs, target)
    assert not [entry for entry in found.census if entry.role == "unknown"]
    assert all(bool(torch.isfinite(v).all()) for v in result.relevance.values())
    assert sum(float(v.abs().sum()) for v in result.relevance.values()) > 0
    if separate:
        assert len(result.score) == len(inputs[0])
        for sample in range(len(inputs[0])):
            single = alone(model, inputs, sample, target)
            torch.testing.assert_close(single.score[0], result.score[sample])
            for space, values in single.relevance.items():
                torch.testing.assert_close(values[0], result.relevance[space][sample], rtol=1e-4, atol=1e-7)
    return found, result


def kinds(found: Any) -> list[tuple[str, str, int, str, int, int]]:
    return [
        (a.kind, a.queries.name, a.queries.size, a.keys.name, a.keys.size, a.heads) for a in found.attentions
    ]


class Divided(nn.Module):
    """Frames in the batch axis; a class token taken from the first rows, which are frames of one sample.

    Attends over time, then over space with the class token in every frame, whose copies are averaged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.place = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.time, self.space = Attend(), Attend()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, video: Tensor) -> Tensor:
        batch, frames = video.shape[:2]
        x = self.patch(video.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.place
        first, x = x[:batch, :1], x[:, 1:]
        x = x.unflatten(0, (batch, frames)).transpose(1, 2)  # [batch, patch, frame, width]
        x = self.time(x.flatten(0, 1)).unflatten(0, (batch, 4))
        each = first.repeat(1, frames, 1).flatten(0, 1).unsqueeze(1)
        x = self.space(torch.cat([each, x.transpose(1, 2).flatten(0, 1)], 1))
        first = x[:, 0].unflatten(0, (batch, frames)).mean(1, keepdim=True)
        logits: Tensor = self.head(first[:, 0])
        return logits


def test_a_class_token_in_every_frame() -> None:
    found, _ = check(Divided(), tokens(BATCH, 3, 3, 8, 8))
    assert kinds(found) == [
        ("self", "video", 12, "video", 12, HEADS),
        ("self", "first+video", 13, "first+video", 13, HEADS),
    ]
    assert {space.name: space.grid for space in found.spaces} == {"video": (3, 2, 2), "first": (1,)}
    time, space = found.maps((tokens(BATCH, 3, 3, 8, 8),))
    torch.testing.assert_close(time.sum(-1), torch.ones(BATCH, HEADS, 12))
    torch.testing.assert_close(space.sum(-1)[..., 1:], torch.ones(BATCH, HEADS, 12))


class Packed(nn.Module):
    """All samples in one sequence; a mask keeps them apart. They are told apart again at the end."""

    def __init__(self, fused: bool, kept_apart: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.attend, self.again = Attend(fused), Attend(fused)
        self.head = nn.Linear(WIDTH, 3)
        self.kept_apart = kept_apart

    def forward(self, x: Tensor) -> Tensor:
        count, size = x.shape[:2]
        owner = torch.arange(count).repeat_interleave(size)
        mask = owner[:, None] == owner if self.kept_apart else torch.ones(len(owner), len(owner)).bool()
        packed = self.embed(torch.cat(list(x), 0))[None]
        packed = self.again(self.attend(packed, mask=mask), mask=mask)
        logits: Tensor = self.head(packed[0].view(count, size, WIDTH)[:, 0])
        return logits


@pytest.mark.parametrize("fused", [False, True])
def test_samples_packed_into_one_sequence(fused: bool) -> None:
    found, _ = check(Packed(fused), tokens(BATCH, TOKENS, WIDTH))
    assert kinds(found) == [("self", "x", TOKENS, "x", TOKENS, HEADS)] * 2
    weights = found.maps((tokens(BATCH, TOKENS, WIDTH),))[0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, TOKENS))


@pytest.mark.parametrize("fused", [False, True])
def test_a_pack_whose_samples_see_each_other_is_one_sample(fused: bool) -> None:
    found, _ = check(Packed(fused, kept_apart=False), tokens(BATCH, TOKENS, WIDTH), separate=False)
    assert kinds(found) == [("self", "x", BATCH * TOKENS, "x", BATCH * TOKENS, HEADS)] * 2


class Windows(nn.Module):
    """Every fourth token makes a window, in the batch axis; of a short text, each window holds one key."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.attend, self.all = Attend(), Attend()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        windows = x.unflatten(1, (-1, 4)).transpose(1, 2)
        x = self.attend(windows.flatten(0, 1)).view(windows.shape).transpose(1, 2).flatten(1, 2)
        logits: Tensor = self.head(self.all(x)[:, 0])
        return logits


@pytest.mark.parametrize("size", [4, 8])
def test_windows_of_one_key_in_the_batch_axis(size: int) -> None:
    found, _ = check(Windows(), tokens(BATCH, size, WIDTH))
    assert kinds(found) == [("self", "x", size, "x", size, HEADS)] * 2
    windows, _ = found.maps((tokens(BATCH, size, WIDTH),))
    torch.testing.assert_close(windows.sum(-1), torch.ones(BATCH, HEADS, size))


class Additive(nn.Module):
    """Scores that a learned vector gives, no query: one summary of all keys, which every value is told."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.embed, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.score = nn.Linear(WIDTH, 1)
        self.head = nn.Linear(WIDTH, 3)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights, key = self.score(x).softmax(1), self.key(x)
        if self.spelling == "sum":
            summary = (weights * key).sum(1, keepdim=True)
        elif self.spelling == "matmul":
            summary = weights.transpose(1, 2) @ key
        else:
            summary = torch.einsum("bno,bnd->bod", weights, key)
        logits: Tensor = self.head((self.value(x).relu() * summary)[:, 0])
        return logits


@pytest.mark.parametrize("spelling", ["sum", "matmul", "einsum"])
def test_every_value_is_told_a_summary_that_no_query_asked_for(spelling: str) -> None:
    model, x = Additive(spelling), tokens(BATCH, TOKENS, WIDTH)
    found, result = check(model, x)
    assert kinds(found) == [("self", found.attentions[0].queries.name, 1, "x", TOKENS, 1)]
    assert result.readout == (((0, 1.0),),) * BATCH
    assert float(result.relevance["x"][:, 1:].sum()) > 0
    (space,) = (space for space in found.spaces if space.name != "x")
    assert (space.size, space.origin) == (1, "mixing")


class Hops(nn.Module):
    """Several learned scores: as many new tokens, which are then read one after the other or attend."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.score = nn.Linear(WIDTH, 3)
        self.attend = Attend()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        few = self.score(x).softmax(1).transpose(1, 2) @ x
        logits: Tensor = self.head(self.attend(few).mean(1))
        return logits


def test_learned_scores_make_new_tokens() -> None:
    found, result = check(Hops(), tokens(BATCH, TOKENS, WIDTH))
    assert [(a.kind, a.queries.size, a.keys.size, a.heads) for a in found.attentions] == [
        ("self", 3, TOKENS, 1),
        ("self", 3, 3, HEADS),
    ]
    assert float(result.relevance["x"].sum()) > 0


class Told(nn.Module):
    """Two streams that attend apart; every region is told the question's first token."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.other, self.last = Attend(), Attend(), Attend()
        self.head = nn.Linear(WIDTH, 3)
        self.how = how

    def forward(self, regions: Tensor, words: Tensor) -> Tensor:
        told = self.other(words)[:, :1]
        x = self.one(regions)
        x = x + told if self.how == "add" else x * told
        logits: Tensor = self.head(self.last(x)[:, 0])
        return logits


@pytest.mark.parametrize("how", ["add", "multiply"])
def test_a_stream_told_the_summary_of_another(how: str) -> None:
    found, result = check(Told(how), tokens(BATCH, TOKENS, WIDTH), tokens(BATCH, 4, WIDTH, seed=1))
    assert float(result.relevance["words"][:, 1:].sum()) > 0
    assert [step.op for step in found.mixings] == ["add" if how == "add" else "mul"]


class Scrambled(nn.Module):
    """A bias made of the queries and laid out wrongly, which some models have: the map's rows stay."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.q, self.k, self.bias = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, HEADS)
        self.head = nn.Linear(DIM, 3)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).unflatten(-1, (HEADS, DIM)).transpose(1, 2) for layer in (self.q, self.k))
        scores, bias = q @ k.transpose(-1, -2), self.bias(x).view(len(x), HEADS, TOKENS, 1)
        weights = (bias + scores if self.first else scores + bias).softmax(-1)
        logits: Tensor = self.head((weights @ k)[:, :, 0].mean(1))
        return logits


@pytest.mark.parametrize("first", [True, False])
def test_rows_of_a_map_outlive_a_finer_bias(first: bool) -> None:
    found, _ = check(Scrambled(first), tokens(BATCH, TOKENS, WIDTH))
    assert kinds(found) == [("self", "x", TOKENS, "x", TOKENS, HEADS)]


class Patches(nn.Module):
    """Patches of all samples' pictures in one row, kept apart by a mask, go to their places in the texts."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.words, self.patch = nn.Embedding(20, WIDTH), nn.Linear(5, WIDTH)
        self.see, self.read = Attend(fused), Attend(fused)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor, patches: Tensor) -> Tensor:
        owner = torch.arange(len(ids)).repeat_interleave(len(patches) // len(ids))
        seen = self.see(self.patch(patches)[None], mask=owner[:, None] == owner)[0]
        x = self.words(ids)
        x = x.masked_scatter((ids == 19)[..., None].expand(x.shape), seen)
        logits: Tensor = self.head(self.read(x)[:, 0])
        return logits


@pytest.mark.parametrize("fused", [False, True])
def test_patches_of_all_pictures_in_one_row(fused: bool) -> None:
    ids = torch.tensor([[1, 19, 19, 2, 3], [4, 5, 19, 19, 6]])
    patches = tokens(4, 5)
    model = Patches(fused).eval()
    found = fxplain.trace(model, (ids, patches))
    result = found.explain((ids, patches), 1)
    assert kinds(found) == [
        ("self", "patches", 4, "patches", 4, HEADS),
        ("self", "ids[4 of 5]+patches", 8, "ids[4 of 5]+patches", 8, HEADS),
    ]
    for sample in range(BATCH):
        own = slice(2 * sample, 2 * sample + 2)
        single = fxplain.explain(model, (ids[sample : sample + 1], patches[own]), 1)
        torch.testing.assert_close(single.score[0], result.score[sample])
        torch.testing.assert_close(single.relevance["ids"][0], result.relevance["ids"][sample])
        torch.testing.assert_close(single.relevance["patches"][0], result.relevance["patches"][sample, own])
        assert float(result.relevance["patches"][sample].sum()) == pytest.approx(
            float(result.relevance["patches"][sample, own].sum())
        )


class Towers(nn.Module):
    """Every picture is compared with every text: [picture, text]."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = Attend(), Attend()

    def forward(self, pictures: Tensor, texts: Tensor) -> Tensor:
        seen, read = self.see(pictures)[:, 0], self.read(texts)[:, -1]
        return nn.functional.normalize(seen, dim=-1) @ nn.functional.normalize(read, dim=-1).T


@pytest.mark.parametrize("texts", [2, 3])
def test_every_picture_is_compared_with_every_text(texts: int) -> None:
    model = Towers().eval()
    inputs = tokens(BATCH, TOKENS, WIDTH), tokens(texts, 5, WIDTH, seed=1)
    for text in range(texts):
        result = fxplain.explain(model, inputs, text)
        for picture in range(BATCH):
            pair = inputs[0][picture : picture + 1], inputs[1][text : text + 1]
            single = fxplain.explain(model, pair, 0)
            torch.testing.assert_close(single.score[0], result.score[picture])
            seen, read = (result.relevance[name][picture] for name in ("pictures", "texts"))
            torch.testing.assert_close(single.relevance["pictures"][0], seen)
            own = read if texts == BATCH else read.view(texts, 5)[text]
            torch.testing.assert_close(single.relevance["texts"][0], own)
            assert float(read.sum()) == pytest.approx(float(own.sum()), rel=1e-4)


class Choices(nn.Module):
    """Several answers for each question, folded into the batch; one score for each."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, WIDTH)
        self.attend = Attend()
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.attend(self.words(ids.flatten(0, 1)))
        logits: Tensor = self.head(x[:, 0]).view(ids.shape[:2])
        return logits


def test_answers_folded_into_the_batch() -> None:
    ids = torch.randint(1, 20, (BATCH, 3, 5), generator=torch.Generator().manual_seed(1))
    found, result = check(Choices(), ids)
    assert kinds(found) == [("self", "ids", 15, "ids", 15, HEADS)]
    assert float(result.relevance["ids"].view(BATCH, 3, 5)[:, [0, 2]].sum()) == 0


class Beams(nn.Module):
    """Encoded once, and repeated for several beams of each sample that decode apart."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, WIDTH)
        self.encode, self.decode, self.cross = Attend(), Attend(), Attend()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        state = self.encode(x).repeat_interleave(ids.shape[1], 0)
        y = self.cross(self.decode(self.words(ids.flatten(0, 1))), state)
        logits: Tensor = self.head(y[:, -1]).unflatten(0, ids.shape[:2])
        return logits


def test_beams_repeat_the_sample_they_belong_to() -> None:
    ids = torch.randint(1, 20, (BATCH, 3, 4), generator=torch.Generator().manual_seed(1))
    found, _ = check(Beams(), tokens(BATCH, TOKENS, WIDTH), ids, target=(1, 2))
    assert [(a.kind, a.queries.size, a.keys.size, a.heads) for a in found.attentions] == [
        ("self", TOKENS, TOKENS, HEADS),
        ("self", 12, 12, HEADS),
        ("encoder_decoder", 12, TOKENS, HEADS),
    ]


class Channels(nn.Module):
    """Channels of a series folded into the batch: patches attend within each; then their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, WIDTH)
        self.attend = Attend()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, series: Tensor) -> Tensor:
        batch, channels = series.shape[0], series.shape[2]
        x = self.patch(series.transpose(1, 2).unfold(-1, 4, 4))
        x = self.attend(x.flatten(0, 1)).unflatten(0, (batch, channels))
        logits: Tensor = self.head(x.mean((1, 2)))
        return logits


def test_channels_folded_into_the_batch() -> None:
    found, _ = check(Channels(), tokens(BATCH, 12, 2))
    assert kinds(found) == [("self", "series", 6, "series", 6, HEADS)]


class Masked(nn.Module):
    """A masked autoencoder: some tokens picked by noise, mask tokens put in, all sorted back."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.first, self.mask = (nn.Parameter(torch.randn(1, 1, WIDTH)) for _ in range(2))
        self.place = nn.Parameter(torch.randn(1, TOKENS + 1, WIDTH))
        self.encode, self.decode = Attend(), Attend()

    def forward(self, patches: Tensor, noise: Tensor) -> Tensor:
        x = self.patch(patches) + self.place[:, 1:]
        order = noise.argsort(1)
        back, kept = order.argsort(1), order[:, :3]
        x = x.gather(1, kept[..., None].expand(-1, -1, WIDTH))
        x = self.encode(torch.cat([self.first.expand(len(x), -1, -1), x], 1))
        whole = torch.cat([x[:, 1:], self.mask.expand(len(x), TOKENS - 3, -1)], 1)
        whole = whole.gather(1, back[..., None].expand(-1, -1, WIDTH))
        y = self.decode(torch.cat([x[:, :1], whole], 1) + self.place)
        logits: Tensor = self.head(y)
        return logits


def test_a_masked_autoencoder() -> None:
    found, _ = check(Masked(), tokens(BATCH, TOKENS, 5), torch.rand(BATCH, TOKENS), target=(2, 1))
    assert [(a.kind, a.heads) for a in found.attentions] == [("self", HEADS), ("self", HEADS)]
