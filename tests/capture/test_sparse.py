"""Products with sparse matrices are those with dense ones, and so are products that are added in one call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from one_head import Attend
from torch import Tensor, nn

import fxplain
from fxplain.errors import VerificationError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

TOKENS = 5
Spread = Callable[[Tensor, Tensor], Tensor]
"""(adjacency [token, token], tokens [token, feature]) -> tokens, each the sum of its neighbours."""


class Graph(nn.Module):
    """Nodes of a graph that first take in their neighbours, then attend."""

    adjacency: Tensor | None

    def __init__(self, spread: Spread, adjacency: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer, self.head = nn.Linear(4, 8), Attend(), nn.Linear(8, 3)
        self.spread = spread
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor, adjacency: Tensor | None = None) -> Tensor:
        x = self.embed(x)
        given = self.adjacency if adjacency is None else adjacency
        assert given is not None
        x = torch.tanh(self.spread(given, x))
        return self.head((x + self.layer(x, x))[0])


@pytest.fixture
def nodes() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(TOKENS, 4), torch.rand(TOKENS, TOKENS).round() + torch.eye(TOKENS)


def by_pairs(adjacency: Tensor, x: Tensor) -> Tensor:
    """The matrix made anew from its places and numbers."""
    adjacency = adjacency.to_sparse().coalesce()
    again = torch.sparse_coo_tensor(adjacency.indices(), adjacency.values(), adjacency.shape)
    return torch.sparse.mm(again, x)


SPREADS: dict[str, Spread] = {
    "@": lambda adjacency, x: adjacency @ x,
    "sparse.mm": torch.sparse.mm,
    "made sparse": lambda adjacency, x: adjacency.to_dense().to_sparse() @ x,
    "made dense": lambda adjacency, x: adjacency.to_dense() @ x,
    "made of pairs": lambda adjacency, x: by_pairs(adjacency.to_dense(), x),
}


def same(model: nn.Module, inputs: object, want: nn.Module, dense: object) -> None:
    for target in range(3):
        found = fxplain.explain(model.eval(), inputs, target=target)
        known = fxplain.explain(want.eval(), dense, target=target)
        torch.testing.assert_close(found.relevance["x"], known.relevance["x"])
    assert known.relevance["x"].any() or found.notes


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("name", SPREADS)
def test_sparse_is_dense(nodes: tuple[Tensor, Tensor], name: str, layout: torch.layout) -> None:
    x, adjacency = nodes
    sparse = adjacency.to_sparse(layout=layout)
    same(Graph(SPREADS[name]), (x, sparse), Graph(SPREADS["@"]), (x, adjacency))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_buffer_is_a_dense_one(nodes: tuple[Tensor, Tensor], layout: torch.layout) -> None:
    x, adjacency = nodes
    sparse = Graph(SPREADS["@"], adjacency.to_sparse(layout=layout))
    same(sparse, x, Graph(SPREADS["@"], adjacency), x)


ADDED: dict[str, Spread] = {
    "addmm": lambda adjacency, x: torch.addmm(x, adjacency, x),
    "baddbmm": lambda adjacency, x: torch.baddbmm(x[None], adjacency[None], x[None])[0],
    "sparse.addmm": lambda adjacency, x: torch.sparse.addmm(x, adjacency.to_sparse(), x),
    "addmm, scaled": lambda adjacency, x: torch.addmm(2 * x, adjacency, x, beta=0.5, alpha=1),
}


@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_in_one_call_is_added(nodes: tuple[Tensor, Tensor], name: str) -> None:
    """Tokens and the sums of their neighbours: neither gives way to the other."""
    same(Graph(ADDED[name]), nodes, Graph(lambda adjacency, x: x + adjacency @ x), nodes)


def test_bias_and_scores_stay_one_call() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.bias = nn.Linear(4, 8), nn.Parameter(torch.zeros(3))
            self.weight = nn.Parameter(torch.randn(8, 3))
            self.layer = Attend()

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return torch.addmm(self.bias, (x + self.layer(x, x))[0], self.weight)

    graph = fxplain.trace(Biased().eval(), torch.randn(1, TOKENS, 4)).captured.graph.graph
    assert any(node.target is torch.ops.aten.addmm.default for node in graph.nodes)


def test_stored_zeros_are_refused(nodes: tuple[Tensor, Tensor]) -> None:
    """A dense matrix does not know them; here the result counts them."""
    x, _ = nodes
    places = torch.arange(TOKENS).expand(2, -1)
    stored = torch.sparse_coo_tensor(places, torch.tensor([1.0, 0, 1, 1, 1]), (TOKENS, TOKENS)).coalesce()
    counted = Graph(lambda adjacency, x: x * adjacency.coalesce().values().mean())
    with pytest.raises(VerificationError):
        fxplain.explain(counted.eval(), (x, stored), target=0)
