"""Samples that a loop takes one after the other, and points at which features of a picture are looked up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxplain

BATCH, WIDTH, SIDE = 3, 8, 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.map = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        map = self.map((self.q(x) @ self.k(x).mT).softmax(-1))
        return x + map @ self.v(x)


class InALoop(nn.Module):
    """Attention to patches, a convolution of each sample by itself, and attention to what comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Conv2d(3, WIDTH, 4, 4), nn.Conv2d(WIDTH, WIDTH, 2, 2)
        self.first, self.second, self.head = Attend(), Attend(), nn.Linear(WIDTH, 3)

    def forward(self, picture: Tensor) -> Tensor:
        x = self.first(self.patch(picture).flatten(2).mT).mT.unflatten(-1, (SIDE, SIDE))
        mixed = torch.cat([self.mix(one[None]) for one in x])
        logits: Tensor = self.head(self.second(mixed.flatten(2).mT).mean(1))
        return logits


class AtPoints(nn.Module):
    """Features are looked up at points, several of them in one cell of the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, 3)
        self.attend = Attend()
        self.register_buffer("points", torch.rand(6, 2) * 0.4 - 0.9)

    def forward(self, picture: Tensor) -> Tensor:
        points = self.points.expand(len(picture), 1, -1, -1)
        found = functional.grid_sample(self.patch(picture), points, align_corners=True)
        logits: Tensor = self.head(self.attend(found.squeeze(2).mT)[:, 0])
        return logits


def pictures() -> Tensor:
    return torch.randn(BATCH, 3, 4 * SIDE, 4 * SIDE)


@pytest.mark.parametrize("model", [InALoop, AtPoints])
def test_a_batch_is_its_samples_one_by_one(model: type[nn.Module]) -> None:
    net, given = model().eval(), pictures()
    together = fxplain.explain(net, given, target=1)
    for sample in range(BATCH):
        alone = fxplain.explain(net, given[sample : sample + 1], target=1)
        for name, values in alone.relevance.items():
            torch.testing.assert_close(together.relevance[name][sample : sample + 1], values)


@pytest.mark.parametrize("model", [InALoop, AtPoints])
def test_maps_are_the_models_own(model: type[nn.Module]) -> None:
    net, given, theirs = model().eval(), pictures(), []
    for part in net.modules():
        if isinstance(part, Attend):
            part.map.register_forward_hook(lambda _, given, result: theirs.append(result[:, None]))
    net(given)
    traced = fxplain.trace(net, given)
    for own, their in zip(traced.maps(given), theirs, strict=False):
        assert own.shape == their.shape
        torch.testing.assert_close(own.sum(-1), their.sum(-1))
        torch.testing.assert_close(own.sort(-1).values, their.sort(-1).values)
