"""One map for all rows of an alignment: scores are summed over rows, values are those of each row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain

BATCH, ROWS, COLUMNS, HEADS, DIM = 2, 3, 5, 2, 4
WIDTH = HEADS * DIM


class Tied(nn.Module):
    """Columns attend to columns, in the same way in all rows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 3)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.map, self.read = nn.Identity(), nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)  # [batch, row, column, width]
        q, k, v = (layer(x).unflatten(-1, (HEADS, DIM)) for layer in (self.query, self.key, self.value))
        if self.how == "rows_first":
            q, k, v = (t.permute(1, 2, 0, 3, 4) for t in (q, k, v))
            map = self.map((torch.einsum("rinhd,rjnhd->hnij", q, k) / 4).softmax(-1))
            read = self.read(torch.einsum("hnij,rjnhd->rinhd", map, v)).permute(2, 0, 1, 3, 4)
        elif self.how == "folded":  # rows lie among the features of a column
            q, k = (t.permute(0, 3, 2, 1, 4).flatten(3) for t in (q, k))
            map = self.map((q @ k.mT / 4).softmax(-1))
            read = self.read(torch.einsum("nhij,nrjhd->nrihd", map, v))
        else:
            scores = torch.einsum("nrihd,nrjhd->nrhij", q, k).sum(1, keepdim=True) / 4
            map = self.map(scores.softmax(-1)).expand(-1, ROWS, -1, -1, -1)
            read = self.read((map @ v.transpose(2, 3)).transpose(2, 3))
        logits: Tensor = self.head((x + read.flatten(3))[:, 1, 2])
        return logits


def reference(model: Tied, ids: Tensor, target: int) -> Tensor:
    """R of row 1, column 2 to the others, by hand, for one sample."""
    made: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, given, out, name=name: made.update({name: out}))
        for name, module in (("map", model.map), ("read", model.read), ("value", model.value))
    ]
    score = model(ids[None])[0, target]
    for hook in hooks:
        hook.remove()
    (gradient,) = torch.autograd.grad(score, made["read"])
    grown = gradient.reshape(ROWS, COLUMNS, HEADS, DIM)  # with one sample all layouts are this one
    value = made["value"].reshape(ROWS, COLUMNS, HEADS, DIM)
    map = made["map"].reshape(HEADS, COLUMNS, COLUMNS)
    weights = (torch.einsum("rihd,rjhd->rhij", grown, value) * map).clamp(min=0).mean(1).detach()
    found = torch.zeros(ROWS, COLUMNS)
    found[1] = weights[1, 2]
    found[1, 2] = 0.0  # the own entry is set aside
    return found.flatten()


@pytest.mark.parametrize("how", ["rows_first", "summed", "folded"])
def test_every_row_reads_itself_by_the_one_map(how: str) -> None:
    torch.manual_seed(0)
    model, ids = Tied(how).eval(), torch.randint(1, 20, (BATCH, ROWS, COLUMNS))
    traced = fxplain.trace(model, ids)
    (attention,) = traced.attentions
    size = ROWS * COLUMNS
    assert (attention.kind, attention.queries.size, attention.keys.size, attention.heads) == (
        "self",
        size,
        size,
        HEADS,
    )
    assert not traced.mixings
    for target in range(3):
        result = traced.explain(ids, target=target)
        wanted = torch.stack([reference(model, one, target) for one in ids])
        torch.testing.assert_close(result.relevance["ids"], wanted)
        rows = traced.explain(ids, target=target, mode="rows")
        torch.testing.assert_close(rows.relevance["ids"], wanted)
    (map,) = traced.maps(ids)
    torch.testing.assert_close(map.sum(-1), torch.ones(BATCH, HEADS, size))


def test_keys_summed_with_values_are_still_no_map() -> None:
    class Linear(Tied):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids)[:, 0]
            state = torch.einsum("nid,nie->nde", self.key(x).softmax(1), self.value(x))
            logits: Tensor = self.head((self.query(x) @ state)[:, 0])
            return logits

    traced = fxplain.trace(Linear("").eval(), torch.randint(1, 20, (BATCH, ROWS, COLUMNS)))
    assert not traced.attentions
    assert "linear attention" in {entry.role for entry in traced.census}
