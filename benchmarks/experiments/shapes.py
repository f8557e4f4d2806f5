"""Scenes of coloured shapes: what is where is known, down to the pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 96
"""Height and width of a scene in pixels."""
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SIZES = ("small", "large")
_RGB = np.array(
    [(220, 50, 50), (50, 190, 60), (60, 90, 230), (230, 210, 50), (170, 70, 200), (235, 235, 235)]
)
_PIXELS = ((14, 19), (29, 38))
"""Least and largest width of what is small and of what is large."""
_TRIES = 60

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Scenes:
    """For up to ``most`` objects: shape, colour and size [n, most] (-1: no object), boxes [n, most, 4] (left,
    top, right, bottom, exclusive) in pixels."""

    shapes: Array
    colours: Array
    sizes: Array
    boxes: Array

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, part: slice | Array) -> Scenes:
        return Scenes(self.shapes[part], self.colours[part], self.sizes[part], self.boxes[part])


def draw(count: int, rng: np.random.Generator, least: int, most: int) -> Scenes:
    """Random scenes: objects of any shape, colour and size, apart from each other."""
    shapes, colours, sizes = (np.full((count, most), -1) for _ in range(3))
    boxes = np.zeros((count, most, 4), np.int64)
    for i in range(count):
        for k, (left, top, width, size) in enumerate(_places(int(rng.integers(least, most + 1)), rng)):
            shapes[i, k], colours[i, k] = rng.integers(len(SHAPES)), rng.integers(len(COLOURS))
            sizes[i, k] = size
            boxes[i, k] = (left, top, left + width, top + width)
    return Scenes(shapes, colours, sizes, boxes)


def _places(count: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Left, top, width and size of squares that do not touch; fewer if no place was free."""
    found: list[tuple[int, int, int, int]] = []
    for _ in range(_TRIES):
        size = int(rng.integers(2))
        width = int(rng.integers(_PIXELS[size][0], _PIXELS[size][1] + 1))
        left, top = (int(v) for v in rng.integers(0, SIZE - width + 1, 2))
        if all(
            left + width < x or x + other < left or top + width < y or y + other < top
            for x, y, other, _ in found
        ):
            found.append((left, top, width, size))
        if len(found) == count:
            break
    return found


def stencil(shape: int, width: int) -> Array:
    """Which pixels of a square of this width belong to the shape."""
    y, x = (np.mgrid[:width, :width] + 0.5) / width * 2 - 1
    if SHAPES[shape] == "circle":
        return x**2 + y**2 <= 1
    if SHAPES[shape] == "square":
        return np.ones((width, width), bool)
    if SHAPES[shape] == "triangle":
        return np.abs(x) <= (y + 1) / 2
    return (np.abs(x) <= 1 / 3) | (np.abs(y) <= 1 / 3)


def paint(scenes: Scenes, rng: np.random.Generator) -> tuple[Array, Array]:
    """Pixels [n, SIZE, SIZE, 3] uint8, on noise; masks [n, most, SIZE, SIZE] bool."""
    count, most = scenes.shapes.shape
    grey = rng.integers(40, 100, (count, SIZE, SIZE, 1), np.int16)
    pixels = grey + rng.integers(-12, 13, (count, SIZE, SIZE, 3), np.int16)
    masks = np.zeros((count, most, SIZE, SIZE), bool)
    for i, k in np.argwhere(scenes.shapes >= 0).tolist():
        left, top, right, bottom = scenes.boxes[i, k].tolist()
        masks[i, k, top:bottom, left:right] = stencil(int(scenes.shapes[i, k]), right - left)
        colour = _RGB[scenes.colours[i, k]] + rng.integers(-20, 21, 3)
        pixels[i][masks[i, k]] = colour + rng.integers(-8, 9, (int(masks[i, k].sum()), 3))
    return pixels.clip(0, 255).astype(np.uint8), masks
