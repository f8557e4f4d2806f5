"""Measures the demo's model with the library: accuracy, and the pointing game for each method.

    python benchmarks/measure_demo.py --data FOLDER

With ``--data`` on 5000 fresh canvases of objects that the model never saw, without on the 600 that the
tests use. Prints JSON; ``--write`` keeps it as ``benchmarks/demo_numbers.json``, the README's source.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fashion_canvases import SIZE, Canvases, draw, load_objects
from torch import Tensor
from train_demo import PATCH, ROOT, accuracy, pixel_values

import fxplain
from fxplain.demo import load_demo, pointing_game

METHODS = ("relevancy", "rollout", "raw_attention")
SEED = 3
COUNT = 5000
BATCH = 50


def maps(traced: Any, pixels: Tensor, targets: Tensor, method: str) -> Tensor:
    """Relevance maps [n, H, W] of one target per canvas."""
    found = []
    for part, target in zip(torch.split(pixels, BATCH), torch.split(targets, BATCH), strict=True):
        result = traced.explain({"pixel_values": part}, target=target, method=method)
        found.append(result.grid("pixel_values"))
    return torch.cat(found)


def measure(model: Any, canvases: Canvases) -> dict[str, Any]:
    """Every object of every canvas is asked for once."""
    pixels = pixel_values(canvases).contiguous()
    traced = fxplain.trace(model, {"pixel_values": pixels[:BATCH]})
    targets, boxes = torch.from_numpy(canvases.classes), torch.from_numpy(canvases.boxes)
    pointing = {"a random patch": chance(boxes.flatten(0, 1))}
    for method in METHODS:
        found = [maps(traced, pixels, targets[:, which], method) for which in (0, 1)]
        pointing[method] = scores(torch.cat(found), torch.cat([boxes[:, 0], boxes[:, 1]]))
        print(method, pointing[method], flush=True)
    return {
        "canvases": len(pixels),
        "objects": 2 * len(pixels),
        "accuracy": round(accuracy(model, canvases), 4),
        "pointing_game": pointing,
    }


def scores(found: Tensor, boxes: Tensor) -> dict[str, float]:
    """The pointing game by both of its measures; see fxplain.demo.pointing_game."""
    touched = pointing_game(found, boxes, (SIZE, SIZE))
    centred = pointing_game(found, boxes, (SIZE, SIZE), tolerance=0.0)
    return {
        "the patch touches the box": round(float(touched.float().mean()), 4),
        "its centre lies on the box": round(float(centred.float().mean()), 4),
    }


def chance(boxes: Tensor) -> dict[str, float]:
    """What every patch in turn scores, on average."""
    cells = torch.eye((SIZE // PATCH) ** 2).view(-1, SIZE // PATCH, SIZE // PATCH)
    each = [scores(cell.expand(len(boxes), -1, -1), boxes) for cell in cells]
    return {name: round(sum(one[name] for one in each) / len(each), 4) for name in each[0]}


def bundled() -> Canvases:
    """The canvases of the tests."""
    with np.load(ROOT / "tests" / "data" / "demo_canvases.npz") as data:
        return Canvases(data["pixels"], data["classes"].astype(np.int64), data["boxes"].astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's IDX files")
    parser.add_argument("--write", action="store_true", help="keep the numbers in the repository")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    canvases = bundled()
    if chosen.data:
        canvases = draw(load_objects(chosen.data, "t10k"), COUNT, np.random.default_rng(SEED))
    text = json.dumps(measure(load_demo().model, canvases), indent=1)
    print(text)
    if chosen.write:
        (ROOT / "benchmarks" / "demo_numbers.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
