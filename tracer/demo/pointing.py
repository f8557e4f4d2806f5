"""The pointing game: does the most relevant place lie on the object that was asked for?

Zhang, Bargal, Lin, Brandt, Shen, Sclaroff, *Top-down Neural Attention by Excitation Backprop*, IJCV 2018,
section 5.1: a map scores a hit if its maximum lies on an object of the class that was explained; accuracy is
hits / (hits + misses).
"""

from __future__ import annotations

import torch
from torch import Tensor


def peak(relevance: Tensor, image_size: tuple[int, int]) -> Tensor:
    """The most relevant cell of each map, in pixels.

    Args:
        relevance: maps [batch, H, W], without unit.
        image_size: height and width of the picture in pixels.

    Returns:
        [batch, 4]: left, top, right, bottom of the cell; the first cell where several are equal.

    Example:
        >>> peak(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), (64, 64))
        tensor([[32.,  0., 64., 32.]])
    """
    rows, columns = relevance.shape[-2:]
    height, width = image_size[0] / rows, image_size[1] / columns
    best = relevance.detach().flatten(1).argmax(dim=1)
    top, left = (best // columns) * height, (best % columns) * width
    return torch.stack([left, top, left + width, top + height], dim=1)


def pointing_game(
    relevance: Tensor, boxes: Tensor, image_size: tuple[int, int], *, tolerance: float | None = None
) -> Tensor:
    """Whether each map points at its object.

    The maps of a transformer have one cell per patch, and all pixels of a cell are equally relevant, so the
    point is a cell. By default it is a hit if the cell and the object's box share a pixel. With a
    ``tolerance`` the point is the cell's centre, as in the paper, which counts a point within 15 pixels.

    Args:
        relevance: maps [batch, H, W] of the explained targets, without unit.
        boxes: [batch, 4] left, top, right, bottom (exclusive) of each target's object, in pixels.
        image_size: height and width of the picture in pixels.
        tolerance: pixels that the cell's centre may lie off the box; 0 asks for the centre on the box.

    Returns:
        [batch] bool. A map that is constant or not finite points nowhere: a miss.

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
        >>> boxes = torch.tensor([[50, 4, 60, 20], [0, 0, 20, 20]])
        >>> pointing_game(maps, boxes, (64, 64))
        tensor([ True, False])
        >>> pointing_game(maps, boxes, (64, 64), tolerance=0.0)
        tensor([False, False])
    """
    cell = peak(relevance, image_size)
    boxes = boxes.to(cell)
    if tolerance is None:
        hit = (cell[:, :2] < boxes[:, 2:]).all(dim=1) & (cell[:, 2:] > boxes[:, :2]).all(dim=1)
    else:
        centre = (cell[:, :2] + cell[:, 2:]) / 2
        off = torch.maximum(boxes[:, :2] - centre, centre - boxes[:, 2:]).clamp(min=0)
        hit = off.norm(dim=1) <= tolerance
    values = relevance.flatten(1)
    points = values.isfinite().all(dim=1) & (values.amax(dim=1) > values.amin(dim=1))
    return hit & points
