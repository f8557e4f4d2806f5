"""Questions about scenes of shapes, with the words and the regions that the answer depends on.

A region stands for what an object detector would give: a box, and features that tell shape, colour and size,
each blurred by noise. Some regions hold an object, the others nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from shapes import COLOURS, SHAPES, SIZE, SIZES, Scenes, draw
from torch import Tensor

OBJECTS = (3, 5)
"""Least and most in a scene."""
REGIONS = 10
NOISE = 0.15
_TOLD = (len(SHAPES), len(COLOURS), len(SIZES))
FEATURES = sum(_TOLD) + 4
"""Shape, colour and size; then the box, which VisualBERT has no other input for."""
_ASKED = ("color", "shape", "size")
_FORMS = (
    "what {asked} is the {key} ?",
    "tell me the {asked} of the {key} ?",
    "the {key} in the picture has what {asked} ?",
)
_EXIST = ("is there a {key} ?", "can you see a {key} in the picture ?")
_PLAIN = """
[PAD] [CLS] [SEP] what is the thing tell me of in picture has there a can you see ?
"""
WORDS = (*_PLAIN.split(), *_ASKED, *SHAPES, *COLOURS)
ANSWERS = (*COLOURS, *SHAPES, *SIZES, "yes", "no")
LENGTH = 12
_NUMBER = {word: number for number, word in enumerate(WORDS)}


@dataclass(frozen=True, eq=False)
class Questions:
    """A batch: model inputs, the right answers [n], and what they depend on."""

    input_ids: Tensor
    """[n, LENGTH], padded on the right."""
    visual_feats: Tensor
    """[n, REGIONS, FEATURES]."""
    visual_pos: Tensor
    """[n, REGIONS, 4]: left, top, right, bottom as parts of the picture."""
    answers: Tensor
    words: Tensor
    """[n, LENGTH] bool: the words that say what is asked for."""
    regions: Tensor
    """[n, REGIONS] bool: the regions of what was asked for; none if there is no such thing."""
    holds: Tensor
    """[n, REGIONS]: the object in a region, -1: none."""

    def __getitem__(self, part: Any) -> Questions:
        return Questions(**{name: value[part] for name, value in vars(self).items()})

    def __len__(self) -> int:
        return len(self.answers)


@dataclass(frozen=True)
class _Question:
    text: str
    answer: str
    marked: tuple[str, ...]
    things: tuple[int, ...]
    """The objects that it is about."""


def asked(count: int, seed: int) -> tuple[Scenes, Questions]:
    """Scenes and one question about each."""
    rng = np.random.default_rng(seed)
    scenes = draw(count, rng, *OBJECTS)
    return scenes, ask(scenes, rng)


def ask(scenes: Scenes, rng: np.random.Generator) -> Questions:
    """One question about each scene, with regions in random order."""
    feats, boxes, holds = _regions(scenes, rng)
    found = [_one(scenes[slice(i, i + 1)], rng) for i in range(len(scenes))]
    ids = np.zeros((len(found), LENGTH), np.int64)
    for row, question in zip(ids, found, strict=True):
        numbers = [_NUMBER[word] for word in ("[CLS]", *question.text.split(), "[SEP]")]
        row[: len(numbers)] = numbers
    marked = [[WORDS[n] in question.marked for n in row] for row, question in zip(ids, found, strict=True)]
    about = [[k in question.things for k in row] for row, question in zip(holds, found, strict=True)]
    return Questions(
        torch.from_numpy(ids),
        torch.from_numpy(feats),
        torch.from_numpy(boxes),
        torch.tensor([ANSWERS.index(question.answer) for question in found]),
        torch.tensor(marked),
        torch.tensor(about),
        torch.from_numpy(holds),
    )


def _one(scene: Scenes, rng: np.random.Generator) -> _Question:
    """About a shape or colour of which there is one alone; or whether there is a thing with both."""
    shapes, colours, sizes = scene.shapes[0], scene.colours[0], scene.sizes[0]
    by_shape = bool(rng.integers(2))
    kinds = shapes if by_shape else colours
    single = [k for k in np.flatnonzero(kinds >= 0) if (kinds == kinds[k]).sum() == 1]
    if not single or rng.random() < 0.25:
        return _whether(shapes, colours, rng)
    k = int(rng.choice(single))
    told = {"color": COLOURS[colours[k]], "shape": SHAPES[shapes[k]], "size": SIZES[sizes[k]]}
    own = "shape" if by_shape else "color"
    other = str(rng.choice([name for name in _ASKED if name != own]))
    key = told[own] if by_shape else f"{told[own]} thing"
    form = _FORMS[int(rng.integers(len(_FORMS)))]
    return _Question(form.format(asked=other, key=key), told[other], (other, told[own]), (k,))


def _whether(shapes: Any, colours: Any, rng: np.random.Generator) -> _Question:
    """Half of the time there is one; else its colour is there and its shape is there, but not in one thing,
    wherever the scene has such a pair."""
    there = sorted({(int(s), int(c)) for s, c in zip(shapes, colours, strict=True) if s >= 0})
    absent = [(s, c) for s, _ in there for _, c in there if (s, c) not in there]
    absent = absent or [pair for pair in np.ndindex(len(SHAPES), len(COLOURS)) if pair not in there]
    pairs = there if rng.random() < 0.5 else absent
    pair = pairs[int(rng.integers(len(pairs)))]
    words = (COLOURS[pair[1]], SHAPES[pair[0]])
    form = _EXIST[int(rng.integers(len(_EXIST)))]
    answer = "yes" if pair in there else "no"
    things = np.flatnonzero((shapes == pair[0]) & (colours == pair[1])).tolist()
    return _Question(form.format(key=" ".join(words)), answer, words, tuple(things))


def _regions(scenes: Scenes, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Features, boxes, and the object in each region (-1: none), in random order."""
    n, most = scenes.shapes.shape
    order = rng.permuted(np.tile(np.arange(REGIONS), (n, 1)), axis=1)
    rows = np.arange(n)[:, None]
    holds = np.where(order < most, np.minimum(order, most - 1), -1)
    holds[(holds >= 0) & (scenes.shapes[rows, holds.clip(0)] < 0)] = -1
    told = []
    for values, kinds in zip((scenes.shapes, scenes.colours, scenes.sizes), _TOLD, strict=True):
        told.append(np.eye(kinds)[values[rows, holds.clip(0)]] * (holds >= 0)[..., None])
    size = rng.integers(14, 39, (n, REGIONS, 2))
    corner = rng.integers(0, SIZE - size + 1)
    nothing = np.concatenate([corner, corner + size], -1)
    boxes = np.where((holds >= 0)[..., None], scenes.boxes[rows, holds.clip(0)], nothing) / SIZE
    feats = np.concatenate([*told, boxes], -1)
    feats[..., :-4] += rng.normal(0, NOISE, feats[..., :-4].shape)
    return feats.astype(np.float32), boxes.astype(np.float32), holds
