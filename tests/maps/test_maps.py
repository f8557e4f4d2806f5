"""Each kind of map: found in one model that has them all, and of the weight that its output shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, scaled_dot_product_attention

import fxplain
from fxplain.labels.flows import (
    EdgeList,
    Elementwise,
    Gathered,
    Kernel,
    Map,
    Matrix,
    Operator,
    Product,
    Sampled,
    Several,
    Site,
    Sum,
    Window,
    WrittenOut,
)
from fxplain.maps.attentions import map_of, rebuilt
from fxplain.maps.mixings import contributions_of
from fxplain.maps.weights import mixing_values
from fxplain.run.replay import replay
from fxplain.saved.codec import CLASSES

KINDS = [
    *(Kernel, WrittenOut, WrittenOut, Sum, Operator, Window, Matrix, Elementwise, Elementwise, Elementwise),
    *(Sampled, EdgeList, Gathered, Gathered, Kernel),
]


class EveryMap(nn.Module):
    """A picture of 8 x 8, whose tokens attend in each of the ways, and are mixed in the others."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, stride=2)
        self.merge = nn.Conv2d(4, 4, 2, stride=2, bias=False)
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.mix = nn.Linear(4, 4, bias=False)
        self.points, self.weights = nn.Linear(4, 4), nn.Linear(4, 2)
        self.cell = nn.GRUCell(4, 4)
        self.head = nn.Linear(4, 3)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.query(x), self.key(x), self.value(x)

    def blocks(self, x: Tensor) -> Tensor:
        """One softmax, whose keys are taken in two blocks."""
        q, k, v = self.parts(x)
        near, far = (q @ k[:, :8].mT).exp(), (q @ k[:, 8:].mT).exp()
        total = near.sum(-1, keepdim=True) + far.sum(-1, keepdim=True)
        return (near @ v[:, :8] + far @ v[:, 8:]) / total

    def sampled(self, x: Tensor, picture: Tensor) -> Tensor:
        grid = self.points(x).tanh().unflatten(-1, (2, 2))
        values = grid_sample(picture, grid, align_corners=False)
        return (values * self.weights(x).softmax(-1)[:, None]).sum(-1).mT

    def edges(self, x: Tensor) -> Tensor:
        starts, ends = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 0])
        q, k, v = self.parts(x)
        weights = (q[:, ends] * k[:, starts]).sum(-1, keepdim=True).exp()
        total = torch.zeros(1, 4, 1, dtype=x.dtype).index_add(1, ends, weights)
        return torch.zeros_like(x).index_add(1, ends, weights / total[:, ends] * v[:, starts])

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).mT
        x = x + scaled_dot_product_attention(*self.parts(x))
        q, k, v = self.parts(x)
        x = x + (q @ k.mT).softmax(-1) @ v
        q, k, v = self.parts(x)
        weights = (q @ k.mT).exp()
        x = x + weights @ v / weights.sum(-1, keepdim=True)
        x = x + self.blocks(x)
        x = x + torch.fft.fft(x, dim=1).real
        y = self.merge(x.mT.unflatten(2, (4, 4))).flatten(2).mT
        y = y + self.mix(y.mT).mT
        y = y + y.mean(1, keepdim=True)
        y = y + self.sampled(y, x.mT.unflatten(2, (4, 4)))
        y = y + self.edges(y)
        state = self.cell(y[:, 2], self.cell(y[:, 1], y[:, 0]))
        y = torch.cat([y, state[:, None]], 1)
        y = y + scaled_dot_product_attention(*self.parts(y))
        return self.head(y[:, -1])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def traced() -> fxplain.Traced:
    torch.manual_seed(0)
    return fxplain.trace(EveryMap().double().eval(), torch.randn(1, 1, 8, 8, dtype=torch.float64))


@pytest.fixture(scope="module")
def run(traced: fxplain.Traced) -> Any:
    captured = traced._first.captured
    args, kwargs = captured.layout.fill(captured.example)
    return replay(captured, captured.bind(args, kwargs), traced._first.classified.sites, gradients=False)


def kinds(parent: type[Map] = Map) -> Iterator[type[Map]]:
    for kind in parent.__subclasses__():
        yield from kinds(kind)
        if kind not in (Product, Several):
            yield kind


def test_every_kind_is_computed_and_saved() -> None:
    assert len(list(kinds())) == 11
    held_in_the_graph = {EdgeList}
    assert set(kinds()) <= {*rebuilt.registry, *contributions_of.registry, *held_in_the_graph}
    assert set(kinds()) <= {*CLASSES.values()}


def test_every_kind_is_found(traced: fxplain.Traced) -> None:
    assert [type(site.map) for site in traced._first.classified.sites] == KINDS


@pytest.mark.parametrize("kind", [Kernel, WrittenOut, Sum, Operator, Window, Matrix, Sampled])
def test_what_a_row_takes_in_is_its_output(traced: fxplain.Traced, run: Any, kind: type[Map]) -> None:
    """The sum of ∇A ⊙ A over a row is ⟨∂y/∂o, o⟩ for the row's output o, whatever the gradient."""
    labelled = traced._first
    sites = labelled.classified.sites
    site: Site = next(s for s in sites if type(s.map) is kind and s.map.tapped is None)
    plan, output = labelled.plans[site.index], run.tapped[site.node.name]
    gradient = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(0))
    if site.role == "attention":
        weights, of_weights = map_of(site, run, gradient)
        assert of_weights is not None
        product = weights * of_weights
        for axis in plan.heads:
            product = product.sum(axis, keepdim=True)
        found = plan.scatter(product.reshape(plan.shape), divide=False)[0].sum(-1)
    else:
        values = map_of(site, run, gradient)[0] if site.attends else mixing_values(plan, run, gradient)
        found = plan.scatter(values.reshape(plan.shape), divide=False)[0].sum(-1)
    labels = labelled.findings.value(site.node).active[0].labels
    rows = torch.searchsorted(plan.queries, labelled.classified.token_ids(labels)).expand(output.shape)
    given = (gradient * output).flatten()
    torch.testing.assert_close(found, torch.zeros_like(found).index_add_(0, rows.flatten(), given))
