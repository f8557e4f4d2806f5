"""Texts of natural lengths through a BERT-base, over their floor.

    python benchmarks/natural_lengths.py [COUNT]

A sequence classifier of BERT-base's size with random weights; lengths are drawn from a log-normal
distribution (median 18 tokens, a tenth above 40), as those of sentences are. ``explain_all`` traces
the model, captures each layout and explains every text; the floor is a forward and a backward pass of the
model for each batch that it made, padding included. Times are of computing (all threads).
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

import fxplain
from fxplain.many import run as running
from fxplain.many.samples import Group


def texts(count: int) -> list[dict[str, torch.Tensor]]:
    """Inputs of one text each."""
    draw = random.Random(0)
    lengths = [min(max(round(draw.lognormvariate(2.9, 0.6)), 4), 128) for _ in range(count)]
    return [
        {"input_ids": torch.randint(5, 30000, (1, n)), "attention_mask": torch.ones(1, n, dtype=torch.int64)}
        for n in lengths
    ]


def floor(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """A forward pass, and a backward pass to the embeddings."""
    kept: list[torch.Tensor] = []
    hook = model.bert.embeddings.register_forward_hook(
        lambda module, args, out: kept.append(out.detach().requires_grad_()) or kept[0]
    )
    try:
        torch.autograd.grad(model(**inputs).logits[:, 1].sum(), kept[0])
    finally:
        hook.remove()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig()).eval().requires_grad_(False)
    data, made = texts(count), []
    explain = running._of_group

    def noted(traced: Any, group: Group, *rest: Any) -> Any:
        made.append(group.inputs)
        return explain(traced, group, *rest)

    running._of_group = noted
    start = time.process_time()
    found = list(fxplain.explain_all(model, data, target=1, progress=False))
    taken = time.process_time() - start
    start = time.process_time()
    for inputs in made:
        floor(model, inputs)
    least = time.process_time() - start
    start = time.process_time()
    for inputs in data:
        floor(model, inputs)
    alone = time.process_time() - start
    shapes = {tuple(inputs["input_ids"].shape) for inputs in made}
    print(f"{len(found)} texts of {len({t['input_ids'].shape[1] for t in data})} lengths")
    print(f"{len(made)} batches of {len(shapes)} layouts: {taken:.0f} s, {taken / least:.2f} of their floor")
    print(f"one by one, the floor alone takes {alone / least:.2f} of that of the batches")


if __name__ == "__main__":
    main()
