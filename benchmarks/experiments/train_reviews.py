"""Trains the BERT of the experiments on movie reviews; some minutes of one core.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python benchmarks/experiments/train_reviews.py --data vaderSentiment-3.3.2.tar.gz

It learns what people felt about a snippet, from those of movies and of the package's other kinds. In half of
the samples some words are masked or deleted: perturbed snippets are then nothing strange to it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from optimizer import Optimizer
from reviews import DECIDED, MASK, VOCABULARY, Snippet, ids, keep, make, padded, read, vocabulary_of
from torch import Tensor
from torch.nn import functional
from weights import store

HELD_OUT = 1500
BUNDLED = 400
"""Held-out snippets with a side that lie beside the weights."""
LEAST = 3
"""How often a word of the vocabulary occurs, at least."""


def batches(snippets: Sequence[Snippet], numbers: dict[str, int], size: int, rng: random.Random) -> Any:
    """Forever: ids, mask, and how positive each is."""
    rows = [(ids(one.words, numbers), one.valence) for one in snippets]
    while True:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + rng.random() * 4)
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        rng.shuffle(parts)
        for part in parts:
            words, mask = padded([_holes(rows[i][0], rng) for i in part])
            yield words, mask, torch.sigmoid(2 * torch.tensor([rows[i][1] for i in part]))


def _holes(row: list[int], rng: random.Random) -> list[int]:
    """In half of the rows up to 40 % of the words masked, or deleted."""
    if rng.random() < 0.5:
        return row
    part, deleted = 0.4 * rng.random(), rng.random() < 0.5
    inner = [None if rng.random() < part else word for word in row[1:-1]]
    left = [word for word in inner if word is not None] if deleted else inner
    return [row[0], *(MASK if word is None else word for word in left), row[-1]]


@torch.no_grad()
def accuracy(model: Any, snippets: Sequence[Snippet], numbers: dict[str, int]) -> float:
    """Part of the snippets whose side the model tells."""
    words, mask = padded([ids(one.words, numbers) for one in snippets])
    model.eval()
    parts = zip(words.split(200), mask.split(200), strict=True)
    said = torch.cat([model(input_ids=a, attention_mask=b).logits.argmax(-1) for a, b in parts])
    model.train()
    return float((said == torch.tensor([one.valence > 0 for one in snippets]).long()).double().mean())


def train(model: Any, found: Any, steps: int) -> None:
    """Cross-entropy against how positive people were."""
    optimizer = Optimizer(model, steps)
    model.train()
    for _, (words, mask, positive) in zip(range(steps), found, strict=False):
        optimizer.step(_loss(model(input_ids=words, attention_mask=mask).logits, positive))


def _loss(logits: Tensor, positive: Tensor) -> Tensor:
    return functional.cross_entropy(logits, torch.stack([1 - positive, positive], 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="vaderSentiment's source archive")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    data, rng = read(chosen.data), random.Random(chosen.seed)
    torch.manual_seed(chosen.seed)
    random.Random(0).shuffle(data.reviews)
    unseen, seen = data.reviews[:HELD_OUT], data.reviews[HELD_OUT:]
    decided = [one for one in unseen if abs(one.valence) >= DECIDED]
    words = vocabulary_of(seen, LEAST)
    numbers = {word: place for place, word in enumerate(words)}
    model, start = make(len(words)), time.process_time()
    found = batches([*seen, *data.others], numbers, chosen.batch, rng)
    train(model, found, chosen.steps)
    scores = {
        "all": accuracy(model, decided, numbers),
        "bundled": accuracy(model, decided[:BUNDLED], numbers),
    }
    print(f"{len(words)} words; accuracy {scores}; {time.process_time() - start:.0f} seconds of one core")
    VOCABULARY.parent.mkdir(exist_ok=True)
    VOCABULARY.write_text("\n".join(words), encoding="utf-8")
    keep(decided[:BUNDLED], data.lexicon, scores)
    print(store("reviews", model))


if __name__ == "__main__":
    main()
