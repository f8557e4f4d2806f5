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


class Beside(nn.Module):
    """A learned token that has read one input stands beside each token of another: as features, or in a sum
    that is the same linear map."""

    def __init__(self, join: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.other, self.wide = nn.Linear(5, 8), nn.Linear(4, 8), nn.Linear(16, 8)
        self.pool, self.attend, self.head = Attend(), Attend(), nn.Linear(8, 2)
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.join = join

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x, z = self.embed(x), self.other(z)
        read = self.query.expand(len(x), -1, -1)
        read = read + self.pool(read, x)
        if self.join == "cat":
            z = self.wide(torch.cat([z, read.expand_as(z)], -1))
        elif self.join == "stack":
            weight = self.wide.weight.unflatten(1, (2, 8)).mT.flatten(1)
            z = torch.stack([z, read.expand_as(z)], -1).flatten(2) @ weight.T + self.wide.bias
        else:
            left, right = self.wide.weight.split(8, 1)
            z = z @ left.T + read @ right.T + self.wide.bias
        out: Tensor = self.head((z + self.attend(z, z))[:, 0])
        return out


@pytest.mark.parametrize("join", ["cat", "stack"])
def test_beside_each_token_as_in_a_sum(join: str) -> None:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 3, 5, generator=random), torch.randn(2, 4, 4, generator=random)
    found, want = (fxplain.explain(Beside(how).eval(), inputs, target=1).relevance for how in (join, "sum"))
    assert float(want["x"].sum()) > 0
    for name in ("x", "z"):
        torch.testing.assert_close(found[name], want[name])
