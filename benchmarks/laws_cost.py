"""What the laws cost, in forward passes: python benchmarks/laws_cost.py

A BERT-base-sized encoder with random weights reads 128 tokens. Times are of computing (all threads), the
least of three; the graph is captured and labelled beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from transformers import BertConfig, BertForSequenceClassification

import fxplain
from fxplain.laws.table import LAWS, Case

TOKENS = 128


def seconds(act: Callable[[], object], times: int = 3) -> float:
    """The least time of computing that it took."""
    found = []
    for _ in range(times):
        start = time.process_time()
        act()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig()).eval()
    inputs = {"input_ids": torch.randint(5, 1000, (1, TOKENS))}
    traced = fxplain.trace(model, inputs)
    result = traced.explain(inputs)
    labelled = traced._first
    bound = labelled.captured.bind((), inputs)
    rows = torch.cat(list(result.relevance.values()), -1)
    case = Case(labelled, bound, list(result.target), result.output, rows, result.notes)
    with torch.no_grad():
        forward = seconds(lambda: model(**inputs))
    print(f"forward pass: {forward:.2f} s")
    total = 0.0
    for law in LAWS:
        taken = seconds(lambda law=law: law.violations(case), 1) / forward  # type: ignore[misc]
        total += taken
        print(f"{law.name}: {taken:.1f} forward passes")
    print(f"all laws: {total:.1f} forward passes")


if __name__ == "__main__":
    main()
