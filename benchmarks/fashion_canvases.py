"""Canvases with two objects of Fashion-MNIST, and the boxes around them."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 64
"""Height and width of a canvas in pixels; the objects are at most 28."""
GAP = 4
"""Free pixels between the boxes of two objects."""
CLASSES = ("trouser", "pullover", "bag", "ankle boot")
_NUMBERS = (1, 2, 8, 9)
"""The classes' numbers in Fashion-MNIST. The six left out look much like one of these."""
_FAINT = 32
"""Pixels darker than this are no part of an object when its box is drawn."""
_TRIES = 16

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Objects:
    """Cut-out objects: pixels [n, 28, 28] uint8, class of each, and box [n, 4] left, top, right, bottom."""

    pixels: Array
    classes: Array
    boxes: Array


@dataclass(frozen=True, eq=False)
class Canvases:
    """Pixels [n, SIZE, SIZE] uint8, classes [n, 2], boxes [n, 2, 4]: left, top, right, bottom (exclusive)."""

    pixels: Array
    classes: Array
    boxes: Array

    def __getitem__(self, part: slice) -> Canvases:
        return Canvases(self.pixels[part], self.classes[part], self.boxes[part])


def load_objects(folder: Path, split: str) -> Objects:
    """The chosen classes of one split, ``train`` (60,000 objects before choosing) or ``t10k`` (10,000)."""
    pixels, numbers = _idx(folder, f"{split}-images-idx3-ubyte"), _idx(folder, f"{split}-labels-idx1-ubyte")
    kept = np.isin(numbers, _NUMBERS)
    pixels = pixels[kept]
    classes = np.searchsorted(_NUMBERS, numbers[kept])
    return Objects(pixels, classes, np.stack([_box(one) for one in pixels]))


def _idx(folder: Path, name: str) -> Array:
    path = folder / name
    data = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(name + ".gz").read_bytes())
    rank = data[3]
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _box(pixels: Array) -> Array:
    bright = pixels > _FAINT
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def draw(
    objects: Objects, count: int, rng: np.random.Generator, *, alone: float = 0.0, mirror: bool = False
) -> Canvases:
    """Random canvases; the few whose two objects found no free place are left out and drawn again.

    Args:
        objects: what to choose from, each class as often as any other.
        count: how many canvases.
        rng: the only source of chance.
        alone: part of the canvases that show one object only; its class and box then stand there twice.
        mirror: turn half of the objects left to right, so that shoes point either way.
    """
    members = [np.flatnonzero(objects.classes == index) for index in range(len(CLASSES))]
    pixels = np.zeros((count, SIZE, SIZE), np.uint8)
    classes, boxes = np.zeros((count, 2), np.int64), np.zeros((count, 2, 4), np.int64)
    done = 0
    while done < count:
        pair = rng.permutation(len(CLASSES))[:2]
        chosen = [members[index][rng.integers(len(members[index]))] for index in pair]
        places = _places(objects.boxes[chosen], rng)
        if places is None:
            continue
        if rng.random() < alone:
            pair, chosen, places = pair[[0, 0]], chosen[:1] * 2, places[[0, 0]]
        for which, place in list(zip(chosen, places, strict=True))[: len(set(pair))]:
            left, top, right, bottom = objects.boxes[which]
            cut = objects.pixels[which, top:bottom, left:right]
            turned = cut[:, ::-1] if mirror and rng.random() < 0.5 else cut
            pixels[done, place[1] : place[3], place[0] : place[2]] = turned
        classes[done], boxes[done] = pair, places
        done += 1
    return Canvases(pixels, classes, boxes)


def _places(boxes: Array, rng: np.random.Generator) -> Array | None:
    """Boxes [2, 4] for two objects, at least GAP apart; None if no try gave that."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    corners = (rng.random((_TRIES, 2, 2)) * (SIZE - sizes + 1)).astype(np.int64)
    ends = corners + sizes
    apart = (ends[:, 0] + GAP <= corners[:, 1]) | (ends[:, 1] + GAP <= corners[:, 0])
    free = np.flatnonzero(apart.any(axis=1))
    if not len(free):
        return None
    return np.concatenate([corners[free[0]], ends[free[0]]], axis=1)
