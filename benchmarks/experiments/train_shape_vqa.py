"""Trains the small LXMERT and VisualBERT on questions about coloured shapes, and stores their weights.

    python benchmarks/experiments/train_shape_vqa.py lxmert
    python benchmarks/experiments/train_shape_vqa.py visual_bert

Takes some minutes on one core. The same seed draws the same scenes and questions; the weights are one run's.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optimizer import Optimizer
from shape_models import HELD_OUT_SEED, accuracy, keep, load, make, vqa_inputs
from shape_questions import OBJECTS, ask, asked
from shapes import draw
from torch.nn import functional
from weights import FOLDER

POOL = 3000
"""Scenes drawn once; questions about them, and the noise in their regions, are drawn anew in every pass."""
HELD_OUT = 1000
MUON = {"lxmert": 0.01, "visual_bert": 0.0}
"""Rates; 0: AdamW alone, with which VisualBERT's weights stay smaller and its gradients say more."""
STEPS = {"lxmert": 1500, "visual_bert": 1200}


def train(name: str, model: Any, steps: int, seed: int, batch: int = 64) -> None:
    """Cross-entropy over the answers."""
    rng = np.random.default_rng(seed)
    # those of one thing, which need no search, are learnt first and show the way to the others
    scenes = draw(POOL, rng, 1, OBJECTS[1])
    optimizer = Optimizer(model, steps, muon=MUON[name], adam=1e-3)
    _, held_out = asked(HELD_OUT, HELD_OUT_SEED)
    total, order = 0.0, np.zeros(0, int)
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = rng.permutation(POOL)
        part, order = ask(scenes[order[:batch]], rng), order[batch:]
        model.train()
        said = model(**vqa_inputs(name, part), return_dict=False)[0]
        loss = functional.cross_entropy(said, part.answers)
        optimizer.step(loss)
        total += loss.item()
        if step % 250 == 0:
            right, passed = accuracy(name, model, held_out), time.process_time()
            print(f"step {step}: loss {total / 250:.3f}, right {right:.3f}, {passed:.0f} s", flush=True)
            total = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=["lxmert", "visual_bert"])
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    model, steps = make(chosen.name), chosen.steps or STEPS[chosen.name]
    train(chosen.name, model, steps, chosen.seed)
    about = {"steps": steps, "seed": chosen.seed, "cpu_seconds": round(time.process_time())}
    keep(chosen.name, model, about, chosen.out)
    right = accuracy(chosen.name, load(chosen.name, chosen.out), asked(HELD_OUT, HELD_OUT_SEED)[1])
    keep(chosen.name, model, {"held_out_accuracy": right, "held_out": HELD_OUT, **about}, chosen.out)


if __name__ == "__main__":
    main()
