"""Attention along the edges of a graph: scores of pairs, a softmax and a sum by index."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 5, 5, 1], [1, 0, 3, 2, 0, 4, 5, 2, 1, 5]])
"""Senders and receivers; node 4 has one edge, node 0 two."""


def softmax_by(scores: Tensor, index: Tensor, size: int) -> Tensor:
    """As graph libraries spell it: the largest score and the sum of each receiver's edges."""
    places = index[:, None].expand_as(scores)
    top = scores.new_full((size, scores.shape[1]), -torch.inf).scatter_reduce(0, places, scores, "amax")
    weights = (scores - top[index]).exp()
    return weights / (weights.new_zeros(size, scores.shape[1]).index_add(0, index, weights)[index] + 1e-16)


class Layer(nn.Module):
    """Two heads; nodes attend to those that send to them."""

    def __init__(self, additive: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.additive = additive
        self.toward, self.away = (nn.Parameter(torch.randn(2, 4)) for _ in range(2))

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        if self.additive:
            return nn.functional.leaky_relu((query * self.toward).sum(-1) + (key * self.away).sum(-1))
        return (query * key).sum(-1) / 2

    def forward(self, asking: Tensor, read: Tensor, edges: Tensor) -> Tensor:
        query, key, value = (
            layer(nodes).unflatten(-1, (2, 4))
            for layer, nodes in ((self.query, asking), (self.key, read), (self.value, read))
        )
        send, receive = edges
        weights = softmax_by(self.scores(query[receive], key[send]), receive, len(asking))
        given = (weights[..., None] * value[send]).flatten(1)
        return self.out(given.new_zeros(len(asking), 8).index_add_(0, receive, given))


class Dense(Layer):
    """The same, as a map of all pairs with a mask."""

    def forward(self, asking: Tensor, read: Tensor, edges: Tensor) -> Tensor:
        query, key, value = (
            layer(nodes).unflatten(-1, (2, 4))
            for layer, nodes in ((self.query, asking), (self.key, read), (self.value, read))
        )
        seen = torch.zeros(len(asking), len(read), dtype=torch.bool)
        seen = seen.index_put((edges[1], edges[0]), torch.tensor(True))
        scores = self.scores(query[:, None], key[None])
        weights = scores.masked_fill(~seen[..., None], -torch.inf).softmax(1)
        return self.out(torch.einsum("qkh,khd->qhd", weights, value).flatten(1))


class Network(nn.Module):
    def __init__(self, layer: type[Layer], additive: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(5, 8)
        self.layers = nn.ModuleList(layer(additive) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        x = self.embed(nodes)
        for layer in self.layers:
            x = x + layer(x, x, edges)
        return self.head(x)


def found(traced: fxplain.Traced) -> list[tuple[str, int, int, int, str]]:
    return [(a.kind, a.heads, a.queries.size, a.keys.size, a.normaliser) for a in traced.attentions]


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("mode", ["rows", "matrix"])
def test_edges_are_as_good_as_a_mask(additive: bool, mode: str) -> None:
    """Two layers; the relevance for each node is that of the masked map of all pairs."""
    nodes, results = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), []
    for layer in (Layer, Dense):
        model = Network(layer, additive).eval()
        traced = fxplain.trace(model, (nodes, EDGES))
        assert found(traced) == [("self", 2, 6, 6, "softmax")] * 2, layer
        assert not traced.mixings
        assert [entry.role for entry in traced.census] == ["attention"] * 2
        results += [
            [traced.explain((nodes, EDGES), target=(n, 1), mode=mode).relevance["nodes"] for n in (0, 4)]  # type: ignore[arg-type]
        ]
    for sparse, dense in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense)
        assert dense.sum() > 0


def test_maps_of_edges_are_laid_out_over_nodes() -> None:
    nodes = torch.randn(6, 5)
    sparse, dense = (
        fxplain.trace(Network(layer, False).eval(), (nodes, EDGES)).maps((nodes, EDGES))
        for layer in (Layer, Dense)
    )
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one, other)


class Bipartite(nn.Module):
    """Two proteins each read the drugs that bind to them."""

    def __init__(self) -> None:
        super().__init__()
        self.drug, self.protein = nn.Linear(5, 8), nn.Linear(3, 8)
        self.read, self.head = Layer(), nn.Linear(8, 2)

    def forward(self, drugs: Tensor, proteins: Tensor, edges: Tensor) -> Tensor:
        drugs, proteins = self.drug(drugs), self.protein(proteins)
        return self.head(proteins + self.read(proteins, drugs, edges))


def test_edges_between_two_kinds_of_nodes_are_a_cross_attention() -> None:
    inputs = torch.randn(6, 5), torch.randn(2, 3), torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 0, 0]])
    traced = fxplain.trace(Bipartite().eval(), inputs)
    assert found(traced) == [("encoder_decoder", 2, 2, 6, "softmax")]
    (map,) = traced.maps(inputs)
    assert map.shape == (1, 2, 2, 6)
    torch.testing.assert_close(map.sum(-1), torch.ones(1, 2, 2))
    assert ((map > 0).sum((0, 1, 2)) == 2).all()
    assert traced.explain(inputs, target=(1, 0)).relevance["drugs"][0, [0, 1, 4, 5]].sum() == 0


class Readout(nn.Module):
    """Attention that nobody asks for pools the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(5, 8), nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, nodes: Tensor, graph: Tensor) -> Tensor:
        x = self.embed(nodes)
        weights = softmax_by(self.gate(x), graph, 2)
        return self.head(x.new_zeros(2, 8).index_add(0, graph, weights * x))


def test_a_softmax_over_the_nodes_of_each_graph_pools_them() -> None:
    inputs = torch.randn(5, 5), torch.tensor([0, 0, 0, 1, 1])
    traced = fxplain.trace(Readout().eval(), inputs)
    (attention,) = traced.attentions
    assert (attention.queries.size, attention.keys.size) == (2, 5)
    relevance = traced.explain(inputs, target=(1, 0)).relevance["nodes"][0]
    assert relevance[:3].sum() == 0 < relevance[3:].sum()


class Convolved(nn.Module):
    """Weights of degrees alone: a graph convolution, and no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        x, (send, receive) = self.embed(nodes), edges
        degree = torch.ones(edges.shape[1]).new_zeros(6).index_add(0, receive, torch.ones(edges.shape[1]))
        return self.head(torch.zeros(6, 8).index_add(0, receive, x[send] / degree[receive, None]))


def test_a_mean_over_neighbours_is_a_mixing() -> None:
    traced = fxplain.trace(Convolved().eval(), (torch.randn(6, 5), EDGES))
    assert not traced.attentions
    assert [m.op for m in traced.mixings] == ["index_add"]
