"""What fxplain finds in every toy model of the tests: a file to compare with after a change that moves code.

    python tests/snapshot.py write before.json
    python tests/snapshot.py compare before.json     # prints every difference; the exit status counts them

Kept for each model: the labels of every node (as a digest), the steps with their kinds and tokens, and the
relevance. A change that mends a fault differs on purpose: the commit says where.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from spellings import NEGATIVES, SPELLINGS
from torch import Tensor
from variants import VARIANTS
from variants.base import tokens
from zoo import ZOO

import fxplain

DIGITS = 5
"""Relevance is compared to so many significant digits of its largest entry."""

Case = Callable[[], tuple[Any, Any, Any]]


def cases() -> Iterator[tuple[str, Case]]:
    """Every toy model: its name, and what builds (model, inputs, target)."""
    built = {f"zoo/{name}": make for name, make in ZOO.items()}
    built |= {f"spellings/{name}": make for name, make in {**SPELLINGS, **NEGATIVES}.items()}
    for name, make in built.items():
        yield name, partial(_of_case, make)
    for name, variant in VARIANTS.items():
        yield f"variants/{name}", partial(_of_variant, variant)


def _of_case(make: Any) -> tuple[Any, Any, Any]:
    model, inputs, expected = make()
    return model, inputs, expected.target


def _of_variant(variant: Any) -> tuple[Any, Any, Any]:
    return variant.build().eval(), tokens(variant.size), (0, 1)


def digest(tensor: Tensor) -> str:
    """A short name for the very numbers of a tensor."""
    content = str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:12]


def labels_of(traced: fxplain.Traced) -> dict[str, list[str]]:
    """Node -> the labels of each of its results, slot by slot."""
    findings = traced._first.findings
    found = {}
    for node in findings.values:
        slots = [slot for value in findings.parts(node) for slot in value.active]
        if slots:
            found[node.name] = [f"{digest(slot.labels)} {sorted(slot.reads)}" for slot in slots]
    return found


def steps_of(traced: fxplain.Traced) -> list[str]:
    """Every step in words: what it is, and a digest of the tokens it joins."""
    rows = []
    for step in traced.steps:
        kind = getattr(step, "kind", None)
        streams = [step.queries.tokens, step.keys.tokens] if isinstance(step, fxplain.Attention) else []
        marks = [digest(torch.tensor(stream)) for stream in streams]
        rows.append(f"{type(step).__name__} {step.name} {kind} {' '.join(marks)}".strip())
    return rows


def relevance_of(traced: fxplain.Traced, inputs: Any, target: Any) -> dict[str, list[float]] | str:
    """Relevance by space, or why there is none."""
    try:
        result = traced.explain(inputs, method="relevancy", target=target)
    except fxplain.FxplainError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return {name: values.double().flatten().tolist() for name, values in result.relevance.items()}


def taken(make: Case) -> dict[str, Any]:
    """The snapshot of one model."""
    torch.manual_seed(0)
    model, inputs, target = make()
    torch.manual_seed(0)
    traced = fxplain.trace(model, inputs)
    return {
        "labels": labels_of(traced),
        "steps": steps_of(traced),
        "relevance": relevance_of(traced, inputs, target),
    }


def differences(old: Any, new: Any) -> list[str]:
    """What differs between two snapshots of one model, in words."""
    found = [] if old["steps"] == new["steps"] else [f"steps {old['steps']} -> {new['steps']}"]
    nodes = [n for n in old["labels"] | new["labels"] if old["labels"].get(n) != new["labels"].get(n)]
    found += [f"labels of {len(nodes)} nodes, first {nodes[0]}"] if nodes else []
    a, b = old["relevance"], new["relevance"]
    if isinstance(a, str) or isinstance(b, str) or a.keys() != b.keys():
        return found if a == b else [*found, f"relevance {a} -> {b}"]
    for name in a:
        one, other = torch.tensor(a[name]), torch.tensor(b[name])
        largest = max(float(one.abs().max()), 1e-30) if len(one) else 1.0
        if (
            len(one) != len(other)
            or float((one - other).abs().max() if len(one) else 0) > largest * 10**-DIGITS
        ):
            found.append(f"relevance of {name}")
    return found


def main(action: str, file: str) -> int:
    """Write a snapshot, or compare with one; the number of models that differ."""
    old = json.loads(Path(file).read_text()) if action == "compare" else {}
    new, wrong = {}, 0
    for name, make in cases():
        try:
            new[name] = taken(make)
        except Exception as error:
            new[name] = {"labels": {}, "steps": [f"{type(error).__name__}: {error}"], "relevance": ""}
        lines = differences(old[name], new[name]) if name in old else []
        wrong += bool(lines)
        for line in lines:
            print(f"{name}: {line}", flush=True)
    if action == "write":
        Path(file).write_text(json.dumps(new) + "\n")
    print(f"{len(new)} models, {wrong} differ")
    return wrong


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.exit(main(*sys.argv[1:]))
