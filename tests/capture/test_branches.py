"""torch.cond: the branch that this input takes is what is explained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from versions import higher_order

import fxplain


class Branching(nn.Module):
    """Sharp attention for some inputs, flat for others; or both sides as plain Python has it."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.query, self.plain = nn.Embedding(20, 8), nn.Linear(8, 8), plain
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        query, sharp = self.query(x), ids[0, 0] > 9
        if self.plain:
            x = x + (attend(query, x) if sharp else flat(query, x))
        else:
            x = x + torch.cond(sharp, attend, flat, (query, x))
        return self.head(x[:, 0])


def attend(query: Tensor, x: Tensor) -> Tensor:
    return (query @ x.mT).softmax(-1) @ x


def flat(query: Tensor, x: Tensor) -> Tensor:
    return (query @ x.mT / 8).softmax(-1) @ x


@higher_order
def test_the_branch_that_is_taken_is_explained() -> None:
    ids, own = torch.tensor([[3, 3, 12, 5]]), torch.cond
    found = [fxplain.explain(Branching(plain).eval(), ids, target=1) for plain in (False, True)]
    torch.testing.assert_close(*(result.relevance["ids"] for result in found))
    assert found[0].relevance["ids"].sum() > 0
    assert any("this input only" in note for note in found[0].notes)
    assert torch.cond is own
