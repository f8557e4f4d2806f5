"""Trains the small ViT behind ``fxplain demo`` and writes all that the demo and its tests need.

    python benchmarks/train_demo.py --data /usr/share/datasets/fashion-mnist

The pictures are Fashion-MNIST (Xiao, Rasul, Vollgraf 2017; MIT licence): four IDX files, gzipped or not, as
``apt install dataset-fashion-mnist`` or ``torchvision.datasets.FashionMNIST(..., download=True)`` leave them.
A canvas shows two objects of different classes at random places that do not touch; the model says which
classes are there. It trains on objects of the train split; all that is measured, bundled and shown has
objects of the test split, which the model never saw.

Some canvases to train on show one object alone. Were there always two, a model could name the second by
elimination, from what the first one is, and an explanation would rightly point at the first.

One CPU core that multiplies bfloat16 fast takes about twelve minutes. The same seed gives the same canvases;
the weights are those of one run, and other machines round otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fashion_canvases import CLASSES, SIZE, Canvases, Objects, draw, load_objects
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

ROOT = Path(__file__).resolve().parent.parent
PATCH = 8
HELD_OUT_SEED = 2
BUNDLED = 600
"""Canvases that the tests measure on; they make 600 kB."""
SHOWN = 6
"""Canvases that come along as pictures."""


@dataclass(frozen=True)
class Training:
    """What one run is made of; the defaults made the bundled model."""

    steps: int = 11000
    batch: int = 64
    kept: int = 32
    """Patches of a canvas that most steps look at."""
    muon: float = 0.02
    adam: float = 1.5e-3
    seed: int = 1


def make_model() -> ViTForImageClassification:
    """A ViT with 4 layers and 4 heads of width 24 that names the classes on a canvas."""
    settings: dict[str, Any] = {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "image_size": SIZE,
        "patch_size": PATCH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: index for index, name in enumerate(CLASSES)},
        "problem_type": "multi_label_classification",
        # eager and bfloat16 is the fastest pair on a CPU at this size
        "attn_implementation": "eager",
    }
    return ViTForImageClassification(ViTConfig(**settings))


def pixel_values(canvases: Canvases) -> Tensor:
    """As the image processor does it: grey as [batch, 3, H, W], values in -1..1."""
    grey = torch.from_numpy(canvases.pixels).float() / 127.5 - 1.0
    return grey[:, None].expand(-1, 3, -1, -1)


def wanted(canvases: Canvases) -> Tensor:
    """One row per canvas, 1 for each class on it: [batch, classes]."""
    zeros = torch.zeros(len(canvases.classes), len(CLASSES))
    return zeros.scatter_(1, torch.from_numpy(canvases.classes), 1.0)


def optimizers(model: torch.nn.Module, training: Training) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which halves the time to the same accuracy, AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "classifier" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "classifier" in name]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [
        torch.optim.AdamW(groups, lr=training.adam, betas=(0.9, 0.98)),
        torch.optim.Muon(matrices, lr=training.muon, weight_decay=0.005, momentum=0.95),
    ]


def logits(model: Any, canvases: Canvases, kept: int | None) -> Any:
    """The model's logits, computed from the CLS token and at most ``kept`` patches of each canvas.

    Most patches of a canvas are empty, and to leave them out halves the time of a step. Patches with an
    object come first, in random order, so that now and then one of them is left out too.
    """
    pixels = pixel_values(canvases)
    if kept is None:
        return model(pixels).logits
    filled = functional.max_pool2d(pixels[:, 0], PATCH).flatten(1) > -1.0
    order = (filled + torch.rand(filled.shape)).topk(kept, dim=1).indices
    hidden = model.vit.embeddings(pixels)
    patches = hidden[:, 1:].gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
    hidden = torch.cat([hidden[:, :1], patches], dim=1)
    for layer in model.vit.layers:
        hidden = layer(hidden, None)
    return model.classifier(model.vit.layernorm(hidden)[:, 0])


def train(model: ViTForImageClassification, objects: Objects, training: Training) -> None:
    """Binary cross-entropy over the classes, a fresh batch of canvases per step."""
    rng = np.random.default_rng(training.seed)
    both = optimizers(model, training)

    def rate(step: int) -> float:  # a short rise, level, then down to almost nothing
        left = (training.steps - step) / (0.8 * training.steps)
        return min(1.0, (step + 1) / 200, max(0.01, left))

    schedules = [torch.optim.lr_scheduler.LambdaLR(one, rate) for one in both]
    model.train()
    start, total = time.monotonic(), 0.0
    for step in range(1, training.steps + 1):
        canvases = draw(objects, training.batch, rng, alone=0.2, mirror=True)
        # the last part of the way with every patch, as the model will be used
        kept = training.kept if step < 0.85 * training.steps else None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = logits(model, canvases, kept)
        loss = functional.binary_cross_entropy_with_logits(found.float(), wanted(canvases))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(both, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        total += loss.item()
        if step % 250 == 0:
            print(f"step {step}: loss {total / 250:.4f}, {time.monotonic() - start:.0f} s", flush=True)
            total = 0.0


@torch.no_grad()
def accuracy(model: Any, canvases: Canvases) -> float:
    """The part of the canvases whose two classes have the two largest logits."""
    model.eval()
    rows = [model(part).logits for part in torch.split(pixel_values(canvases), 200)]
    named = torch.cat(rows).topk(2, dim=1).indices.sort(dim=1).values
    right = torch.from_numpy(canvases.classes).sort(dim=1).values
    return float((named == right).all(dim=1).float().mean())


def save_model(model: ViTForImageClassification, folder: Path) -> None:
    """A folder as ``from_pretrained`` wants it."""
    model.config.architectures = ["ViTForImageClassification"]
    model.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)


def save_canvases(canvases: Canvases, folder: Path) -> None:
    """A few canvases as pictures, with what is on them in ``canvases.json``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entries = []
    for i, pixels in enumerate(canvases.pixels):
        name = f"canvas-{i}.png"
        Image.fromarray(pixels).save(folder / name, optimize=True)
        objects = [
            {"class": int(index), "label": CLASSES[index], "box": [int(edge) for edge in box]}
            for index, box in zip(canvases.classes[i], canvases.boxes[i], strict=True)
        ]
        entries.append({"file": name, "objects": objects})
    about = "Objects of the test split of Fashion-MNIST; boxes are [left, top, right, bottom) in pixels."
    (folder / "canvases.json").write_text(json.dumps({"about": about, "canvases": entries}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST's IDX files")
    parser.add_argument("--out", type=Path, default=ROOT, help="checkout to write the assets into")
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--seed", type=int, default=Training.seed)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    model = make_model()
    train(model, load_objects(chosen.data, "train"), Training(steps=chosen.steps, seed=chosen.seed))
    unseen = load_objects(chosen.data, "t10k")
    held_out = draw(unseen, 2200, np.random.default_rng(HELD_OUT_SEED))
    print(f"accuracy on {len(held_out.pixels)} held-out canvases: {accuracy(model, held_out):.4f}")
    demo = chosen.out / "tracer" / "demo"
    save_model(model, demo / "model")
    save_canvases(held_out[:SHOWN], demo / "canvases")
    bundled = held_out[:BUNDLED]
    data = chosen.out / "tests" / "data"
    data.mkdir(parents=True, exist_ok=True)
    classes, boxes = bundled.classes.astype(np.uint8), bundled.boxes.astype(np.uint8)
    np.savez_compressed(data / "demo_canvases.npz", pixels=bundled.pixels, classes=classes, boxes=boxes)


if __name__ == "__main__":
    main()
