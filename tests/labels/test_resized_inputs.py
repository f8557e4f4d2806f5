"""Data that is resized before there are tokens: a picture for a grid of learned positions, a spectrogram."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxplain

SIDE = 16


class Resized(nn.Module):
    """Patches of a picture that is brought to one size first."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.patches, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 3)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = functional.interpolate(pixels, size=(SIDE, SIDE), mode=self.mode)
        tokens = self.patches(pixels).flatten(2).mT
        out: Tensor = self.head((tokens + self.attend(tokens, tokens, tokens)[0])[:, 0])
        return out


@pytest.mark.parametrize("side", [8, SIDE, 24], ids=["enlarged", "as it is", "made smaller"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest", "area"])
def test_each_sample_has_its_own_patches(mode: str, side: int) -> None:
    torch.manual_seed(0)
    model, pixels = Resized(mode).double().eval(), torch.randn(2, 3, side, side, dtype=torch.float64)
    traced = fxplain.trace(model, pixels)
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size, attention.queries.name) == ("self", 16, "pixels")
    both = traced.explain(pixels, 1)
    assert tuple(both.grid("pixels").shape) == (2, 4, 4)
    for sample in range(2):
        alone = fxplain.explain(model, pixels[sample : sample + 1], 1)
        torch.testing.assert_close(both.relevance["pixels"][sample], alone.relevance["pixels"][0])
