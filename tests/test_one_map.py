"""One map may weigh several values, and weights need no softmax where a query was added to the keys."""

from __future__ import annotations

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
