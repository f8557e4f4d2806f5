"""Grids that are made larger, smaller or sampled: what is blended has a note, and windows a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxplain
from fxplain.errors import FxplainError

BLENDS = "blends neighbouring tokens"


class Grid(nn.Module):
    """16 tokens on a grid attend, and the grid is laid out anew."""

    def __init__(self, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 3)
        self.exact, self.wide = nn.ConvTranspose2d(8, 8, 2, 2), nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.change = change

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels).flatten(2).mT
        x = x + (x @ x.mT).softmax(-1) @ x
        x = self.change(self, x.mT.unflatten(-1, (4, 4)))
        out: Tensor = self.head(x.flatten(2).mT)
        return out


PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
POINTS = torch.rand(2, 3, 3, 2, generator=torch.Generator().manual_seed(2)) * 1.6 - 0.8


def traced(change: Any) -> fxplain.Traced:
    torch.manual_seed(0)
    return fxplain.trace(Grid(change).eval(), PIXELS)


BLENDING = {
    "bilinear": lambda m, x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "bicubic": lambda m, x: nn.functional.interpolate(x, size=(6, 6), mode="bicubic", align_corners=True),
    "fewer": lambda m, x: nn.functional.interpolate(x, size=(3, 3), mode="bilinear"),
    "transposed": lambda m, x: m.wide(x),
    "sampled": lambda m, x: nn.functional.grid_sample(x, POINTS, align_corners=False),
}
EXACT = {
    "nearest": lambda m, x: nn.functional.interpolate(x, scale_factor=2),
    "transposed": lambda m, x: m.exact(x),
    "sampled": lambda m, x: nn.functional.grid_sample(x, POINTS, mode="nearest", align_corners=True),
    "same size": lambda m, x: nn.functional.interpolate(x, size=(4, 4), mode="bilinear"),
}


@pytest.mark.parametrize("kind", BLENDING)
def test_what_is_blended_counts_as_the_nearest_and_is_told(kind: str) -> None:
    found = traced(BLENDING[kind])
    assert any(entry.role == "resampling" and BLENDS in entry.reason for entry in found.census)
    assert any("resampling" in note for note in found.explain(PIXELS, target=(0, 1)).notes)
    assert not any(law.broken for law in found.laws(PIXELS))


@pytest.mark.parametrize("kind", EXACT)
def test_what_is_laid_out_again_needs_no_note(kind: str) -> None:
    found = traced(EXACT[kind])
    assert not any(entry.role == "resampling" for entry in found.census)
    assert not any(law.broken for law in found.laws(PIXELS))


ADAPTIVE = {
    "mean": lambda m, x: nn.functional.adaptive_avg_pool2d(x, (3, 3)),
    "largest": lambda m, x: nn.functional.adaptive_max_pool2d(x, (3, 2)),
    "one axis": lambda m, x: nn.functional.adaptive_avg_pool2d(x, (3, 4)),
    "divides": lambda m, x: nn.functional.adaptive_avg_pool2d(x, (2, 2)),
}


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_windows_of_an_adaptive_pooling_may_overlap(kind: str) -> None:
    found = traced(ADAPTIVE[kind])
    assert len(found.mixings) == 1
    assert not any(law.broken for law in found.laws(PIXELS))


def test_a_mean_over_windows_that_overlap_carries_what_each_window_holds() -> None:
    """[batch, new, old] weights by hand: each window's tokens alone, weighed by the gradient."""
    found = traced(ADAPTIVE["mean"])
    result = found.explain(PIXELS, target=(4, 1))  # the window in the middle: rows and columns 1 and 2
    inside = result.matrix("adaptive_avg_pool2d", "pixels")[0, 4].view(4, 4)
    torch.manual_seed(0)
    model = Grid(lambda m, x: x[:, :, 1:3, 1:3].mean((2, 3), keepdim=True)).eval()
    alone = fxplain.trace(model, PIXELS).explain(PIXELS, target=(0, 1))
    torch.testing.assert_close(inside, alone.relevance["pixels"][0].view(4, 4), rtol=1e-4, atol=1e-6)


def test_the_largest_of_a_window_counts_once_however_many_are_equal() -> None:
    """A background of one colour: what a window gives is one of its places', as its gradient says."""
    found = traced(lambda m, x: nn.functional.max_pool2d(x.clamp(max=0.1), 2))
    assert not any(law.broken for law in found.laws(PIXELS))


def test_halves_of_tokens_that_gate_each_other_are_not_passed_in_silence() -> None:
    with pytest.raises(FxplainError, match="glu"):
        traced(lambda m, x: nn.functional.glu(x, 2)).explain(PIXELS, target=(0, 1))
