"""An id that the model itself puts among those of an input is a token, as it is when it is an input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn
from torch.nn.functional import pad

import fxplain

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
CLS = 101


def shifted(ids: Tensor) -> Tensor:
    out = ids.new_zeros(len(ids), ids.shape[1] + 1)
    out[:, 1:] = ids
    out[:, 0] = CLS
    return out


def scattered(ids: Tensor) -> Tensor:
    whole = torch.full((len(ids), ids.shape[1] + 1), CLS)
    return whole.scatter(1, torch.arange(1, ids.shape[1] + 1).expand(ids.shape), ids)


BEFORE: dict[str, Callable[[Tensor], Tensor]] = {
    "full": lambda ids: torch.cat([torch.full((len(ids), 1), CLS), ids], 1),
    "new_full": lambda ids: torch.cat([ids.new_full((len(ids), 1), CLS), ids], 1),
    "a constant, expanded": lambda ids: torch.cat([torch.tensor([[CLS]]).expand(len(ids), 1), ids], 1),
    "ones": lambda ids: torch.cat([torch.ones_like(ids[:, :1]) * CLS, ids], 1),
    "padded": lambda ids: pad(ids, (1, 0), value=CLS),
    "written": shifted,
    "scattered": scattered,
    "hstack": lambda ids: torch.hstack([torch.full((len(ids), 1), CLS), ids]),
}


class Reader(nn.Module):
    """Reads the first token of two layers; ``more`` embeds the ids by a second table, too."""

    def __init__(self, before: Callable[[Tensor], Tensor] | None, more: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.other = nn.Embedding(130, 8), nn.Embedding(130, 8)
        self.first, self.second, self.head = Attend(), Attend(), nn.Linear(8, 3)
        self.before, self.more = before, more

    def forward(self, ids: Tensor) -> Tensor:
        ids = self.before(ids) if self.before else ids
        x = self.embed(ids) + self.other(ids) if self.more else self.embed(ids)
        x = x + self.first(x, x)
        x = x + self.second(x, x)
        return self.head(x[:, 0])


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("more", [False, True])
def test_a_class_id(name: str, more: bool) -> None:
    given = torch.cat([torch.full((2, 1), CLS), IDS], 1)
    want = fxplain.explain(Reader(None, more).eval(), given, target=1)
    traced = fxplain.trace(Reader(BEFORE[name], more).eval(), IDS)
    assert sorted(space.size for space in traced.spaces) == [1, 6]
    assert not traced.mixings
    found = traced.explain(IDS, target=1)
    torch.testing.assert_close(found.relevance["ids"], want.relevance["ids"][:, 1:])
