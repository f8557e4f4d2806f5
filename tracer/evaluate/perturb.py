"""Positive and negative perturbation: take away what is called relevant; does the model mind?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from fxplain.capture.guard import untouched
from fxplain.capture.outputs import flatten
from fxplain.errors import InputError
from fxplain.evaluate.batches import Batch, Explained, on_cpu, samples, take, with_floor
from fxplain.evaluate.curves import auc, kept, protocol, srg
from fxplain.evaluate.estimate import RESAMPLES
from fxplain.evaluate.measures import Curves, Measure
from fxplain.evaluate.removal import Inputs, Removal, named
from fxplain.evaluate.table import Table
from fxplain.result import Result
from fxplain.run.wishes import score_at
from fxplain.traced import Traced

Score = Callable[[Any, slice], Tensor]
"""From the model's output and which samples it is of, to one number per sample."""
Counted = Literal["accuracy", "target"] | Score
METHODS = ("relevancy", "rollout", "raw_attention", "attention_gradcam", "random")

MEASURES = (Measure("SRG"), Measure("positive AUC", higher_is_better=False), Measure("negative AUC"))


def perturbation(
    traced: Traced,
    inputs: Any,
    targets: Any = None,
    methods: Sequence[str] = METHODS,
    *,
    removal: Removal,
    steps: str | Sequence[float] = "even",
    labels: Tensor | None = None,
    score: Counted = "accuracy",
    output: str | None = None,
    batch: int = 50,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: bool = True,
) -> Table:
    """Remove parts of the inputs by falling relevance (positive) and by rising relevance (negative).

    Chefer, Gur, Wolf, CVPR 2021, section 4 and ICCV 2021, section 5. With the most relevant gone first a good
    method's curve falls fast (small area), with the least relevant gone first slowly (large area). Every
    table has a row ``random``.

    Args:
        traced: the model, traced.
        inputs: all samples, by name.
        targets: what is explained: one for all, or one per sample; None: the arg max of every sample.
        methods: their names.
        removal: what is removed, and how: :class:`Pixels`, :class:`Delete`, :class:`Replace` or your own.
        steps: a protocol's name (``pixels``, ``tokens``, ``even``), or the parts that are removed, rising.
        labels: [samples] the right class: what counts is whether the model still says so. None: whether it
        says
            what it said of the whole input.
        score: what a curve shows: ``accuracy``, the explained score itself (``target``: regression, language
            models), or a function from the model's output and a slice of the samples to one number each.
        output: name of the output that is explained and read; see :meth:`Traced.explain`.
        batch: samples at a time.
        seed, resamples: of the intervals.
        progress: show a bar, where a person sees it.

    Raises:
        InputError: inputs without names, or with unequal numbers of tokens and no mask.
        FxplainError: as :meth:`Traced.compare`.
    """
    inputs = named(inputs)
    fractions = protocol(steps).steps if isinstance(steps, str) else tuple(steps)
    run = Explained(traced, inputs, with_floor(methods), targets, batch, output, progress)
    accuracy = _Accuracy(traced, inputs, labels)
    positive, negative = _both(run, removal, fractions, lambda found: _judge(score, accuracy, found, output))
    areas = {name: _areas(torch.tensor(fractions), positive[name], negative[name]) for name in positive}
    return Table(
        f"perturbation of {removal.space}",
        MEASURES,
        areas,
        run.refused,
        tuple(run.notes),
        Curves(fractions, positive, negative, score if isinstance(score, str) else "score"),
        seed,
        resamples,
    )


def _both(
    run: Explained, removal: Removal, fractions: Sequence[float], judge: Callable[[Result], Score]
) -> Iterator[dict[str, Tensor]]:
    """Method -> [samples, steps], with the most relevant removed first, then with the least relevant."""
    found: dict[bool, dict[str, list[Tensor]]] = {True: {}, False: {}}
    for part in run:
        for name, result in part.results.items():
            score = judge(result)
            for side, rows in found.items():
                relevance, may = removal.units(result, part.inputs), removal.removable(part.inputs)
                left = [kept(relevance, fraction, most_first=side, removable=may) for fraction in fractions]
                rows.setdefault(name, []).append(_curve(run.traced, part, removal, left, score))
    for rows in found.values():
        yield {name: torch.cat(parts) for name, parts in rows.items() if name not in run.refused}


def _areas(steps: Tensor, positive: Tensor, negative: Tensor) -> dict[str, Tensor]:
    falling, rising = auc(steps, positive), auc(steps, negative)
    return {"SRG": srg(falling, rising), "positive AUC": falling, "negative AUC": rising}


def _curve(traced: Traced, part: Batch, removal: Removal, left: Sequence[Tensor], score: Score) -> Tensor:
    """[batch, steps]: the score with more and more removed; ``left`` is what stays, step by step."""
    outputs = (run_model(traced, removal.apply(part.inputs, each)) for each in left)
    return torch.stack([on_cpu(score(output, part.samples).double()) for output in outputs], 1)


def run_model(traced: Traced, inputs: Inputs) -> Any:
    """The model itself on these inputs, in evaluation mode; it is left as it was found."""
    with untouched(traced.model):
        return traced.model(**inputs)


def _judge(score: Counted, accuracy: _Accuracy, result: Result, output: str | None) -> Score:
    name = output or result.output
    if score == "accuracy":
        return partial(accuracy, name)
    if score == "target":
        return partial(_target_score, result, name)
    if not callable(score):
        raise InputError(
            "this cannot be scored", expected="'accuracy', 'target' or a function", found=repr(score)
        )
    return score


def _target_score(result: Result, name: str, output: Any, part: slice) -> Tensor:
    """The explained score, from another run."""
    if callable(result.target):
        values: Tensor = result.target(output)
        return values.reshape(-1)
    values = tensor_of(output, name)
    try:
        return torch.stack([score_at(values[i], index) for i, index in enumerate(result.target)])
    except IndexError as error:
        raise InputError(
            "the explained score lies at a place that is gone",
            expected="a removal that keeps the places of the output",
            found=f"{name} of shape {list(values.shape)}",
            hint="replace tokens (Replace) instead of deleting them",
        ) from error


class _Accuracy:
    """Whether the largest value of the output is where it should be."""

    def __init__(self, traced: Traced, inputs: Inputs, labels: Tensor | None) -> None:
        self._traced, self._inputs, self._labels = traced, inputs, labels
        self._count = samples(inputs)
        self._said: dict[int, Tensor] = {}
        if labels is not None and len(labels) != self._count:
            raise InputError(
                "one label per sample is needed", expected=f"{self._count} labels", found=f"{len(labels)}"
            )

    def __call__(self, name: str, output: Any, part: slice) -> Tensor:
        return (_largest(output, name) == self._wanted(name, part)).double()

    def _wanted(self, name: str, part: slice) -> Tensor:
        if self._labels is not None:
            return self._labels[part].cpu()
        if part.start not in self._said:
            whole = run_model(self._traced, take(self._inputs, part, self._count))
            self._said[part.start] = _largest(whole, name)
        return self._said[part.start]


def _largest(output: Any, name: str) -> Tensor:
    values = tensor_of(output, name)
    if values.ndim != 2:
        raise InputError(
            "accuracy is of one class per sample",
            expected="an output of shape [batch, classes]",
            found=f"{name} of shape {list(values.shape)}",
            hint="score='target' takes the explained score itself, and score= any function of the output",
        )
    return values.argmax(-1).cpu()


def tensor_of(output: Any, name: str) -> Tensor:
    """The tensor of that name in what the model returned."""
    found = dict(flatten(output))
    if name not in found:
        raise InputError(f"the model's output has no {name!r}", expected=" or ".join(found), found=name)
    return found[name]
