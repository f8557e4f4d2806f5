"""What is taken or written by an index is the same however the places are spelled: counted from the end, as a
list, a slice, a mask or a tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn

import fxplain

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
LAST = torch.tensor([-1])
Take = Callable[[Tensor], Tensor]


class Reader(nn.Module):
    """Reads what ``take`` takes of the tokens, after an attention and before another."""

    def __init__(self, take: Take) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.attend, self.again, self.head = (
            nn.Embedding(50, 8),
            Attend(),
            Attend(),
            nn.Linear(8, 5),
        )
        self.take = take

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.take(x + self.attend(x, x))
        return self.head(x + self.again(x, x)).mean(1)


def relevance(take: Take) -> Tensor:
    return fxplain.explain(Reader(take).eval(), IDS, target=1).relevance["ids"]


def written(x: Tensor, places: object, rows: Tensor) -> Tensor:
    x = x.clone()
    x[:, places] = rows  # type: ignore[index]
    return x


TAKEN: dict[str, tuple[Take, Take]] = {
    "a list": (lambda x: x[:, [-1]], lambda x: x[:, -1:]),
    "a tensor": (lambda x: x[:, LAST], lambda x: x[:, -1:]),
    "several, some from the end": (lambda x: x[:, [0, -2, -1]], lambda x: x[:, [0, 4, 5]]),
    "all, the last first": (lambda x: x[:, [-1, -2, -3, -4, -5, -6]], lambda x: x.flip(1)),
    "behind an ellipsis": (lambda x: x[..., [-1, -2], :], lambda x: x[..., [5, 4], :]),
    "tokens first": (lambda x: x.mT[..., [-1]].mT, lambda x: x[:, -1:]),
    "along the batch too": (lambda x: x[torch.arange(2), LAST][:, None], lambda x: x[:, -1:]),
    "a table of places": (lambda x: x[:, [[-1, 0]]].flatten(1, 2), lambda x: x[:, [5, 0]]),
    "written": (lambda x: written(x, [-1, -2], x[:, [0, 1]]), lambda x: written(x, [5, 4], x[:, :2])),
    "added": (
        lambda x: x.index_put((torch.arange(2)[:, None], LAST), x[:, :1], accumulate=True),
        lambda x: x.index_put((torch.arange(2)[:, None], LAST + 6), x[:, :1], accumulate=True),
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_places_counted_from_the_end(name: str) -> None:
    spelled, plain = TAKEN[name]
    torch.testing.assert_close(relevance(spelled), relevance(plain))
