"""Attention across the samples of a batch (SAINT): they are tokens of one sample, and a note tells."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain


class Attend(nn.Module):
    """One head, written out."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.map = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.map((self.query(x) @ self.key(x).mT).softmax(-1)) @ self.value(x)


class Table(nn.Module):
    """Columns of a row attend to each other; then rows do, as a whole or in their first column."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.columns, self.head = nn.Linear(1, 8), Attend(), nn.Linear(8, 3)
        self.rows, self.how = Attend(32 if how == "whole rows" else 8), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[..., None])
        x = x + self.columns(x)
        if self.how == "whole rows":
            y = x.flatten(1)[None]
            x = (y + self.rows(y)).view_as(x)
        elif self.how == "every column":
            x = x + self.rows(x.transpose(0, 1)).transpose(0, 1)
        else:
            x = (x[:, 0] + self.rows(x[None, :, 0])[0])[:, None]
        return self.head(x[:, 0])


@pytest.mark.parametrize("how", ["whole rows", "every column", "first column"])
def test_rows_that_attend_to_each_other_are_one_sample(how: str) -> None:
    torch.manual_seed(0)
    model, x = Table(how).double().eval(), torch.randn(3, 4, dtype=torch.float64)
    traced = fxplain.trace(model, x)
    assert traced.batch_axis is None
    assert [attention.kind for attention in traced.attentions] == ["self", "self"]
    result = traced.explain(x, target=(2, 1))
    (note,) = (note for note in result.notes if note.startswith("no axis of the inputs holds separate"))
    assert "in rows" in note or "rows.query" in note
    assert "joins places along axis 0" in note
    assert "test_rows_of_a_table.py:" in note


def test_row_attention_in_the_first_column_is_followed_across_samples() -> None:
    torch.manual_seed(0)
    model, x = Table("first column").double().eval(), torch.randn(3, 4, dtype=torch.float64)
    kept: list[Tensor] = []
    hooks = [
        module.map.register_forward_hook(lambda _module, _given, made: kept.append(made))
        for module in (model.columns, model.rows)
    ]
    score = model(x)[2, 1]
    for hook in hooks:
        hook.remove()
    columns, rows = (
        (a * g).clamp(min=0).detach() for a, g in zip(kept, torch.autograd.grad(score, kept), strict=True)
    )
    matrix = torch.eye(12, dtype=x.dtype)
    matrix = matrix + torch.block_diag(*columns)
    first = [0, 4, 8]
    matrix[first] = matrix[first] + rows[0] @ matrix[first]
    found = fxplain.explain(model, x, target=(2, 1)).matrix("x", "x")[0]
    assert bool((rows > 0).any())
    torch.testing.assert_close(found, matrix)
