"""Samples explained batch by batch by several methods, with the progress shown."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxplain.errors import FxplainError, InputError
from fxplain.evaluate.removal import Inputs, named
from fxplain.result import Result
from fxplain.traced import Traced


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples: where they stand among all, their inputs, and each method's result."""

    samples: slice
    inputs: Inputs
    results: dict[str, Result]


@dataclass(eq=False)
class Explained:
    """Goes through all samples once; ``refused`` and ``notes`` are whole when it is done."""

    traced: Traced
    inputs: Inputs
    methods: Sequence[str]
    targets: Any = None
    batch: int = 50
    output: str | None = None
    progress: bool = True
    refused: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Batch]:
        count = samples(self.inputs)
        starts = range(0, count, self.batch)
        for start in shown(starts, "explaining", self.progress):
            part = slice(start, min(start + self.batch, count))
            inputs = take(self.inputs, part, count)
            methods = [name for name in self.methods if name not in self.refused]
            found = self.traced.compare(inputs, methods, _targets(self.targets, part, count), self.output)
            self.refused |= {name: _first_line(why) for name, why in found.refused.items()}
            # what is told sample by sample is about one batch alone
            told = (_SAMPLE.sub(" (some samples)", note) for note in found.notes if "per sample:" not in note)
            self.notes |= dict.fromkeys(told)
            yield Batch(part, inputs, dict(found.results))


def with_floor(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, each once, and chance, which has a row in every table."""
    return tuple(dict.fromkeys((*methods, "random")))


_SAMPLE = re.compile(r" \(samples? [\d, ]+\)")
"""Numbers of samples in a note are those of one batch, and mean nothing here."""


def _first_line(error: FxplainError) -> str:
    return str(error).splitlines()[0]


def samples(inputs: Any) -> int:
    """How many samples the inputs hold: the first axis of their tensors."""
    sizes = [len(value) for value in named(inputs).values() if isinstance(value, Tensor) and value.ndim]
    if not sizes or not sizes[0]:
        raise InputError("there is nothing to evaluate on", expected="tensors of one or more samples")
    return sizes[0]


def take(inputs: Inputs, part: slice, count: int) -> Inputs:
    """Some samples of the inputs; what has no axis of samples is handed over as it is."""
    return {
        name: value[part] if isinstance(value, Tensor) and value.ndim and len(value) == count else value
        for name, value in inputs.items()
    }


def _targets(targets: Any, part: slice, count: int) -> Any:
    if isinstance(targets, Tensor | list):
        if len(targets) != count:
            raise InputError(
                "one target per sample is needed", expected=f"{count} targets", found=f"{len(targets)}"
            )
        return targets[part]
    return targets


def shown(steps: Iterable[int], what: str, progress: bool) -> Iterable[int]:
    """The steps, with a bar on stderr where a person sees it."""
    if not progress or not sys.stderr.isatty():
        return steps
    from tqdm import tqdm

    bar: Iterable[int] = tqdm(steps, desc=what, leave=False)
    return bar


def on_cpu(values: Tensor) -> Tensor:
    """A result's numbers, kept after the batch is gone."""
    return values.detach().to("cpu", torch.float64 if values.is_floating_point() else values.dtype)
