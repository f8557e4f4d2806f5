"""One map may weigh several values, and weights need no softmax where a query was added to the keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain


class Relative(nn.Module):
    """Relative positions beside keys and values, as Shaw et al. have them: the map weighs both values."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.places = nn.Parameter(torch.randn(5, 5, 4))
        self.together = together

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        query, key, value = (
            layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        map = (query @ key.mT / 2).softmax(-1)
        if self.together:
            values = value[:, :, None] + self.places
            given = torch.einsum("bhqk,bhqkd->bhqd", map, values)
        else:
            rows = map.permute(2, 0, 1, 3).reshape(5, -1, 5) @ self.places
            given = map @ value + rows.view(5, -1, 2, 4).permute(1, 2, 0, 3)
        return self.head((x + given.transpose(1, 2).flatten(2))[:, 0])


def test_a_map_that_weighs_two_values_is_one_attention() -> None:
    ids = torch.tensor([[7, 3, 12, 5, 1], [2, 4, 6, 8, 9]])
    found = []
    for together in (False, True):
        traced = fxplain.trace(Relative(together).eval(), ids)
        (attention,) = traced.attentions
        assert (attention.kind, attention.heads) == ("self", 2)
        found.append(traced.explain(ids, target=1).relevance["ids"])
    torch.testing.assert_close(*found)


class Interest(nn.Module):
    """What was bought counts as it fits to what is offered, by weights of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.head = nn.Embedding(20, 8), nn.Linear(16, 2)
        self.fit = nn.Sequential(nn.Linear(24, 8), nn.Sigmoid(), nn.Linear(8, 1))

    def forward(self, bought: Tensor, offered: Tensor) -> Tensor:
        old, new = self.items(bought), self.items(offered)[:, None]
        wide = new.expand_as(old)
        weights = self.fit(torch.cat([wide, old, wide * old], -1))
        return self.head(torch.cat([(weights.mT @ old)[:, 0], new[:, 0]], -1))


def test_a_query_among_the_keys_makes_an_attention_without_softmax() -> None:
    torch.manual_seed(0)
    inputs = torch.randint(1, 20, (2, 6)), torch.tensor([3, 4])
    traced = fxplain.trace(Interest().eval(), inputs)
    (attention,) = traced.attentions
    assert (attention.kind, attention.normaliser) == ("encoder_decoder", "none")
    assert (attention.queries.name, attention.keys.name) == ("offered", "bought")
    assert (traced.explain(inputs, target=1).relevance["bought"].sum(-1) > 0).any()


class Learned(nn.Module):
    """A softmax of parameters over places, as in the random Synthesizer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.map, self.head = (
            nn.Embedding(20, 8),
            nn.Parameter(torch.randn(5, 5)),
            nn.Linear(8, 2),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.head((self.map.softmax(-1) @ self.embed(ids))[:, 0])


def test_a_softmax_of_parameters_is_a_learned_mixture() -> None:
    traced = fxplain.trace(Learned().eval(), torch.tensor([[7, 3, 12, 5, 1]]))
    assert [entry.role for entry in traced.census] == ["learned mixture", "token mixing"]


class TwoSets(nn.Module):
    """One softmax over keys of two inputs, whose parts weigh values of their own; or values side by side."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.image = nn.Embedding(20, 8), nn.Linear(6, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.key2, self.value2, self.out = (nn.Linear(8, 8) for _ in range(3))
        self.head, self.how = nn.Linear(8, 3), how

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        x, y = self.words(ids), self.image(image)
        scores = [self.query(x) @ keys.mT for keys in (self.key(x), self.key2(y))]
        map = torch.cat(scores, -1).softmax(-1)
        one, other = self.value(x), self.value2(y)
        if self.how == "whole":
            given = map @ torch.cat([one, other], 1)
        elif self.how == "split":
            own, cross = map.split([x.shape[1], y.shape[1]], -1)
            given = own @ one + cross @ other
        else:
            given = (one.mT @ map[..., : x.shape[1]].mT).mT + (other.mT @ map[..., x.shape[1] :].mT).mT
        return self.head((x + self.out(given))[:, 0])


@pytest.mark.parametrize("how", ["split", "sliced"])
def test_parts_of_the_columns_of_one_softmax_are_one_attention(how: str) -> None:
    torch.manual_seed(1)
    inputs = {"ids": torch.tensor([[7, 3, 12], [2, 4, 6]]), "image": torch.randn(2, 4, 6)}
    found = []
    for spelled in ("whole", how):
        traced = fxplain.trace(TwoSets(spelled).eval(), inputs)
        (attention,) = traced.attentions
        assert (attention.kind, attention.queries.size, attention.keys.size) == ("self", 3, 7)
        found.append(traced.explain(inputs, target=1).relevance)
    for name in ("ids", "image"):
        torch.testing.assert_close(found[0][name], found[1][name])


class CrissCross(nn.Module):
    """Every place of a picture reads its column and its row, under one softmax (Huang et al., ICCV 2019)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 3)
        self.query, self.key, self.value = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.map = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        b, c, h, w = x.shape
        query, key, value = self.query(x), self.key(x), self.value(x)

        def columns(t: Tensor) -> Tensor:
            return t.permute(0, 3, 1, 2).reshape(b * w, c, h)

        def rows(t: Tensor) -> Tensor:
            return t.permute(0, 2, 1, 3).reshape(b * h, c, w)

        up = torch.bmm(columns(query).mT, columns(key)) - torch.diag(torch.full((h,), torch.inf))
        up = up.view(b, w, h, h).permute(0, 2, 1, 3)
        along = torch.bmm(rows(query).mT, rows(key)).view(b, h, w, w)
        map = self.map(torch.cat([up, along], 3).softmax(3))
        of_up = map[..., :h].permute(0, 2, 1, 3).reshape(b * w, h, h)
        of_along = map[..., h:].reshape(b * h, w, w)
        up = torch.bmm(columns(value), of_up.mT).view(b, w, c, h).permute(0, 2, 3, 1)
        along = torch.bmm(rows(value), of_along.mT).view(b, h, c, w).permute(0, 2, 1, 3)
        return self.head((x + up + along)[:, :, 0, 0])


def test_rows_and_columns_of_a_picture_under_one_softmax_are_one_attention() -> None:
    torch.manual_seed(3)
    model, pixels = CrissCross().double().eval(), torch.randn(1, 3, 6, 8, dtype=torch.float64)
    kept: list[Tensor] = []
    hook = model.map.register_forward_hook(lambda _module, _given, made: kept.append(made))
    score = model(pixels)[0, 2]
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    weights = (kept[0] * gradient).clamp(min=0)[0].detach()
    matrix = torch.eye(12, dtype=pixels.dtype).view(3, 4, 3, 4)
    for i in range(3):
        for j in range(4):
            matrix[i, j, :, j] += weights[i, j, :3]
            matrix[i, j, i] += weights[i, j, 3:]
    traced = fxplain.trace(model, pixels)
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size, attention.keys.size) == ("self", 12, 12)
    found = traced.explain(pixels, target=2).matrix("pixels", "pixels")[0]
    assert bool((weights > 0).any())
    torch.testing.assert_close(found, matrix.view(12, 12))


class Channels(nn.Module):
    """Tokens attend; then features attend to each other, by their products over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + (x @ x.mT).softmax(-1) @ x
        energy = x.mT @ x
        energy = energy.max(-1, keepdim=True)[0].expand_as(energy) - energy
        x = x + (energy.softmax(-1) @ x.mT).mT
        return self.head(x[:, 0])


def test_channel_attention_is_in_the_census_once() -> None:
    torch.manual_seed(0)
    result_of = fxplain.trace(Channels().eval(), torch.randn(2, 5, 3))
    assert [entry.role for entry in result_of.census] == ["attention", "channel attention"]
    notes = result_of.explain(torch.randn(2, 5, 3), target=1).notes
    assert any("without a token-to-token map" in note for note in notes)
    assert not any("several places" in note for note in notes)
