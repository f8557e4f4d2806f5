"""Regions cut out by boxes: tokens of their own before any attention, and a refusal after one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms, roi_align, roi_pool

import fxplain

CORNERS = [[0.0, 0, 4, 4], [2, 2, 8, 8], [1, 3, 6, 7], [0, 0, 8, 8], [4, 4, 8, 8], [0, 3, 3, 8]]
BOXES = torch.tensor([[place // 3, *corners] for place, corners in enumerate(CORNERS)])  # type: ignore[misc]


class Regions(nn.Module):
    def __init__(self, cut: object, attends_before: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.coarse, self.fine = nn.Conv2d(8, 8, 2, stride=2), nn.Conv2d(8, 8, 3, padding=1)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.cut, self.attends_before = cut, attends_before

    def attend(self, x: Tensor) -> Tensor:
        return (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)

    def pyramid(self, pixels: Tensor) -> Tensor:
        """Two levels, the coarse one added to the fine one."""
        grid = self.stem(pixels).relu()
        return self.fine(grid + nn.functional.interpolate(self.coarse(grid), scale_factor=2))

    def forward(self, pixels: Tensor, boxes: Tensor) -> Tensor:
        grid = self.pyramid(pixels)
        if self.attends_before:
            grid = grid + self.attend(grid.flatten(2).mT).mT.unflatten(-1, (8, 8))
        regions = self.cut(grid, boxes, 1).flatten(1).unflatten(0, (2, 3))  # type: ignore[operator]
        return self.head(regions + self.attend(regions))


@pytest.mark.parametrize("cut", [roi_align, roi_pool])
def test_regions_of_a_stem_are_tokens(cut: object) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 8, 8), BOXES
    model = Regions(cut).eval()
    traced = fxplain.trace(model, inputs)
    (attention,) = traced.attentions
    assert (attention.kind, attention.queries.size, attention.keys.size) == ("self", 3, 3)
    assert fxplain.check(model, inputs).understood
    (map,) = traced.maps(inputs)
    regions = cut(model.pyramid(inputs[0]), BOXES, 1).flatten(1).unflatten(0, (2, 3))  # type: ignore[operator]
    wanted = (model.query(regions) @ model.key(regions).mT).softmax(-1)
    torch.testing.assert_close(map[:, 0], wanted)


def test_regions_of_tokens_that_have_attended_are_refused() -> None:
    verdict = fxplain.check(Regions(roi_align, attends_before=True).eval(), (torch.randn(2, 3, 8, 8), BOXES))
    assert verdict.answer == "refused"
    assert "roi_align" in verdict.finding("labels").sentence


def test_boxes_that_are_kept_are_numbers() -> None:
    class Kept(Regions):
        def forward(self, pixels: Tensor, boxes: Tensor) -> Tensor:
            scores = self.head(self.stem(pixels).flatten(2).mT)[0, : len(boxes), 0]
            tokens = self.stem(pixels).flatten(2).mT[:, nms(boxes[:, 1:], scores, 0.1)]
            return self.head(tokens + self.attend(tokens))

    verdict = fxplain.check(Kept(roi_align).eval(), (torch.randn(1, 3, 8, 8), BOXES))
    assert verdict.understood, verdict


@pytest.mark.parametrize("before", [False, True])
def test_where_no_box_is_found_nothing_is_lost(before: bool) -> None:
    class Detects(Regions):
        def forward(self, pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
            grid = self.stem(pixels)
            tokens = grid.flatten(2).mT
            tokens = tokens + self.attend(tokens)
            from_grid = tokens.mT.unflatten(-1, (8, 8)) if before else grid
            regions = self.cut(from_grid, boxes[:0], 2)  # type: ignore[operator]
            return self.head(tokens), self.fine(regions).mean((2, 3))

    verdict = fxplain.check(Detects(roi_align).eval(), (torch.randn(1, 3, 8, 8), BOXES))
    assert verdict.understood, verdict
