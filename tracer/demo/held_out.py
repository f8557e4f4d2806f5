"""Questions about canvases that the demo's model never saw, with the masks of what is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fxplain.demo.assets import CANVAS_FOLDER

BLACK = -1.0
"""What a black pixel is for the demo's model."""
_FAINT = 32
"""Pixels darker than this are no part of an object."""


@dataclass(frozen=True, eq=False)
class Questions:
    """Each canvas twice, once for each of its two objects."""

    pixel_values: Tensor
    """[questions, 3, 64, 64] in -1..1."""
    targets: Tensor
    """[questions] int64: the class that is asked for."""
    others: Tensor
    """[questions] int64: the class of the other object."""
    masks: Tensor
    """[questions, 64, 64] bool: the pixels of the object that is asked for."""

    def named_right(self, logits: Tensor, part: slice) -> Tensor:
        """Whether the class that is asked for is still seen (its probability is over a half): [batch]."""
        targets = self.targets[part].to(logits.device)
        return (logits.gather(1, targets[:, None])[:, 0] > 0).double()


def questions(count: int = 200, file: Path = CANVAS_FOLDER / "held_out.npz") -> Questions:
    """Questions about the bundled canvases (100 of them, so at most 200), or those of another such file.

    Example:
        >>> asked = questions(4)
        >>> tuple(asked.pixel_values.shape), asked.targets.shape
        ((4, 3, 64, 64), torch.Size([4]))
    """
    with np.load(file) as data:
        pixels, classes, boxes = (torch.from_numpy(data[name]) for name in ("pixels", "classes", "boxes"))
    values = (pixels.float() / 127.5 - 1.0)[:, None].repeat(1, 3, 1, 1).repeat_interleave(2, 0)
    masks = torch.zeros(len(values), *pixels.shape[1:], dtype=torch.bool)
    for i, (left, top, right, bottom) in enumerate(boxes.flatten(0, 1).tolist()):
        masks[i, top:bottom, left:right] = pixels[i // 2, top:bottom, left:right] > _FAINT
    targets, others = classes.long().flatten(), classes.long().flip(1).flatten()
    return Questions(values[:count], targets[:count], others[:count], masks[:count])
