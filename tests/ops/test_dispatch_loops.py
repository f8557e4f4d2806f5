"""Rows that a loop sends away and adds back to their own places are not mixed, however many, in any order.

Mixtures of experts do this, expert by expert. Here all experts are one layer, so the loop is that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn

import fxplain

Back = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(buffer, rows, what comes back for them) -> the buffer with it."""


def by_elements(rows: Tensor, values: Tensor) -> Tensor:
    return rows[:, None].expand(values.shape)


BACK: dict[str, Back] = {
    "index_add": lambda out, rows, values: out.index_add_(0, rows, values),
    "index_add, out of place": lambda out, rows, values: out.index_add(0, rows, values),
    "index_copy": lambda out, rows, values: out.index_copy_(0, rows, values),
    "scatter": lambda out, rows, values: out.scatter(0, by_elements(rows, values), values),
    "scatter_add": lambda out, rows, values: out.scatter_add_(0, by_elements(rows, values), values),
    "scatter_reduce": lambda out, rows, values: out.scatter_reduce(
        0, by_elements(rows, values), values, "sum"
    ),
    "index_put": lambda out, rows, values: out.index_put((rows,), values),
    "index_put, added": lambda out, rows, values: out.index_put_((rows,), values, accumulate=True),
    "put": lambda out, rows, values: out.put_(rows[:, None] * 8 + torch.arange(8), values),
    "put, added": lambda out, rows, values: out.put(
        rows[:, None] * 8 + torch.arange(8), values, accumulate=True
    ),
    "index_reduce": lambda out, rows, values: out.index_reduce(0, rows, values, "amax", include_self=False),
}
SPLITS = {
    "a last row alone": [[0, 1, 2, 3, 4, 5, 6], [7]],
    "a last row first": [[7], [0, 1, 2, 3, 4, 5, 6]],
    "one by one": [[3], [1], [0], [2], [7], [6], [5], [4]],
    "mixed up": [[6, 2, 4], [7, 0], [5, 3, 1]],
    "an empty one": [[], [0, 1, 2, 3, 4], [7, 6, 5]],
}


class Experts(nn.Module):
    def __init__(self, back: Back | None, split: Sequence[Sequence[int]], gate: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first, self.second = nn.Embedding(50, 8), Attend(), Attend()
        self.expert, self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 5)
        self.back, self.split, self.gated = back, split, gate

    def each(self, rows: Tensor) -> Tensor:
        weights = self.gate(rows).softmax(-1)  # one expert a token: its weight is 1
        return self.expert(rows) * weights if self.gated else self.expert(rows)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.first(x, x)
        flat = x.reshape(-1, 8)
        out = torch.zeros_like(flat)
        back = self.back
        for rows in map(torch.tensor, self.split) if back else []:
            rows = rows.long()
            assert back is not None
            out = back(out, rows, self.each(flat.index_select(0, rows)))
        x = x + (out.reshape(x.shape) if back else self.each(x))
        return self.head((x + self.second(x, x))[:, 0])


def explained(ids: Tensor, *model: object) -> fxplain.Result:
    return fxplain.explain(Experts(*model).eval(), ids, target=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("samples", [1, 2])
def test_split(split: str, samples: int) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]]).view(samples, -1)
    found = explained(ids, BACK["index_add"], SPLITS[split])
    torch.testing.assert_close(found.relevance["ids"], explained(ids, None, ()).relevance["ids"])


@pytest.mark.parametrize("name", BACK)
def test_way_back(name: str) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    want = explained(ids, None, ()).relevance["ids"]
    for split in ("one by one", "a last row first"):
        torch.testing.assert_close(explained(ids, BACK[name], SPLITS[split]).relevance["ids"], want)


@pytest.mark.parametrize("name", ["index_add", "scatter_add"])
def test_weighed_by_one(name: str) -> None:
    """Weights of 1 at each place look like those of an attention along edges, but each row is its own."""
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    model = Experts(BACK[name], SPLITS["mixed up"], True).eval()
    assert [a.name for a in fxplain.trace(model, ids).attentions] == ["first", "second"]
    want = explained(ids, None, (), True).relevance["ids"]
    torch.testing.assert_close(fxplain.explain(model, ids, target=1).relevance["ids"], want)
