"""A learned token that has read an input counts as one of an input: beside others, it is read too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import fxplain

Meet = Callable[[Tensor, Tensor], Tensor]
"""(tokens of the input, the learned one that has read them) -> what the head reads, 8 or 16 features."""

MEET: dict[str, Meet] = {
    "added": lambda x, y: x[:, 0] + y[:, 0],
    "added, the other way round": lambda x, y: y[:, 0] + x[:, 0],
    "subtracted": lambda x, y: x[:, 0] - y[:, 0],
    "multiplied": lambda x, y: x[:, 0] * y[:, 0],
    "beside as features": lambda x, y: torch.cat([x[:, 0], y[:, 0]], -1),
    "beside as tokens": lambda x, y: torch.cat([x[:, :1], y], 1).flatten(1),
    "stacked": lambda x, y: torch.stack([x[:, 0], y[:, 0]], 1).mean(1),
    "added to all": lambda x, y: (x + y).mean(1),
    "multiplied with all": lambda x, y: (x * y).mean(1),
    "a gate": lambda x, y: x[:, 1] * y[:, 0].sigmoid(),
}


class Pooled(nn.Module):
    """The query is learned, or (for comparison) an input."""

    def __init__(self, meet: Meet, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.pool = nn.Linear(5, 8), Attend()
        self.head, self.wide = nn.Linear(8, 2), nn.Linear(16, 2)
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.meet, self.fused = meet, fused

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        x, y = self.embed(x), self.query.expand(len(x), -1, -1) if query is None else query
        read = (self.pool.q(y), self.pool.k(x), self.pool.v(x)) if self.fused else ()
        y = y + (scaled_dot_product_attention(*read) if read else self.pool(y, x))
        met = self.meet(x, y)
        out: Tensor = self.head(met) if met.shape[-1] == 8 else self.wide(met)
        return out


@pytest.mark.parametrize("name", MEET)
@pytest.mark.parametrize("fused", [False, True])
def test_as_if_the_query_were_an_input(name: str, fused: bool) -> None:
    model = Pooled(MEET[name], fused).eval()
    x = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(1))
    query = model.query.detach().expand(2, -1, -1).clone()
    for target in (0, 1):
        want = fxplain.explain(model, (x, query), target=target).relevance["x"]
        torch.testing.assert_close(fxplain.explain(model, x, target=target).relevance["x"], want)
