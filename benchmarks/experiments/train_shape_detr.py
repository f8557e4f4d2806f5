"""Trains the small DETR on scenes of coloured shapes, by boxes and classes alone, and stores its weights.

    python benchmarks/experiments/train_shape_detr.py

The classes are the four shapes, in any colour. No mask is ever seen in training. As in DETR, the backbone was
trained before, on a simpler task: here, which class of box a cell's centre lies in.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optimizer import Optimizer
from shape_detector import OBJECTS, accuracy, held_out, load, make, pixel_values, wanted
from shape_models import keep
from shapes import SHAPES, SIZE, Scenes, draw, paint
from torch import Tensor, nn
from torch.nn import functional
from weights import FOLDER

POOL = 3000
HELD_OUT = 200


def cells(scenes: Scenes, side: int) -> Tensor:
    """[n, side, side]: the class of the box that a cell's centre lies in; the last class: none."""
    centre = (np.arange(side) + 0.5) * SIZE / side
    left, top, right, bottom = (scenes.boxes[..., k, None] for k in range(4))
    x, y = (left <= centre) & (centre < right), (top <= centre) & (centre < bottom)
    inside = y[..., :, None] & x[..., None, :] & (scenes.shapes >= 0)[..., None, None]
    shapes = np.where(inside, scenes.shapes[..., None, None], -1).max(1)
    return torch.from_numpy(np.where(shapes < 0, len(SHAPES), shapes))


def warm_up(model: Any, scenes: Scenes, pixels: Any, steps: int, rng: Any, batch: int = 16) -> None:
    """Train the backbone alone; DETR then keeps the statistics of its normalisation as they are."""
    from transformers import AutoBackbone

    own = model.model.backbone.model
    backbone = AutoBackbone.from_config(own.config)
    head = nn.Conv2d(own.config.hidden_sizes[-1], len(SHAPES) + 1, 1)
    both = nn.ModuleList([backbone, head]).train()
    optimizer = torch.optim.AdamW(both.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    total = 0.0
    for step in range(1, steps + 1):
        chosen = rng.integers(0, len(scenes), batch)
        said = head(backbone(pixel_values(pixels[chosen])).feature_maps[-1])
        loss = functional.cross_entropy(said, cells(scenes[chosen], said.shape[-1]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            print(f"backbone {step}: loss {total / 100:.3f}, {time.process_time():.0f} s", flush=True)
            total = 0.0
    own.load_state_dict({k: v for k, v in backbone.state_dict().items() if "num_batches" not in k})


def train(model: Any, scenes: Scenes, pixels: Any, steps: int, rng: Any, batch: int = 16) -> None:
    """The model's own loss: bipartite matching, classes, boxes, in every layer of the decoder."""
    optimizer = Optimizer(model, steps, muon=0.0, adam=1e-3)
    never_seen, painted, _ = held_out(HELD_OUT)
    total = 0.0
    for step in range(1, steps + 1):
        part, seen = _turned(scenes, pixels, rng.integers(0, len(scenes), batch), rng)
        model.train()
        loss = model(pixel_values=pixel_values(seen), labels=wanted(part)).loss
        optimizer.step(loss)
        total += loss.item()
        if step % 250 == 0:
            right, passed = accuracy(model, never_seen, painted), time.process_time()
            print(f"step {step}: loss {total / 250:.3f}, right {right:.3f}, {passed:.0f} s", flush=True)
            total = 0.0


def _turned(scenes: Scenes, pixels: Any, chosen: Any, rng: np.random.Generator) -> tuple[Scenes, Any]:
    """Left and right changed about, half of the time: every shape is its own mirror image."""
    part, seen = scenes[chosen], pixels[chosen]
    if rng.random() < 0.5:
        return part, seen
    boxes = part.boxes.copy()
    boxes[..., 0], boxes[..., 2] = SIZE - part.boxes[..., 2], SIZE - part.boxes[..., 0]
    return Scenes(part.shapes, part.colours, part.sizes, boxes), seen[:, :, ::-1].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--warm", type=int, default=800, help="steps of the backbone alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    rng = np.random.default_rng(chosen.seed)
    scenes = draw(POOL, rng, 1, OBJECTS[1])
    pixels = paint(scenes, rng)[0]
    model = make()
    warm_up(model, scenes, pixels, chosen.warm, rng)
    train(model, scenes, pixels, chosen.steps, rng)
    about = {"steps": chosen.steps, "seed": chosen.seed, "cpu_seconds": round(time.process_time())}
    keep("detr", model, about, chosen.out)
    never_seen, painted, _ = held_out(HELD_OUT)
    right = accuracy(load(chosen.out), never_seen, painted)
    keep("detr", model, {"held_out_found": right, "held_out": HELD_OUT, **about}, chosen.out)


if __name__ == "__main__":
    main()
