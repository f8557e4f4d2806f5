"""What is explained: a target made into one score per sample, and the rows of R that carry it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxplain.capture.captured import Captured
from fxplain.errors import NonFiniteError, TargetError
from fxplain.labels.findings import Findings
from fxplain.labels.labels import Slot, codes_of, reads_of, samples_of
from fxplain.labels.value import Value
from fxplain.questions import Question, name_of_function
from fxplain.run.asked import Frame
from fxplain.run.combined import Asked, Combined, asked, each_target, parts_of, score_at
from fxplain.run.wishes import Region

Readout = tuple[tuple[int, int], ...]
"""The rows that carry one sample's score: pairs (sample, token), tokens as in the labelling run."""


@dataclass(frozen=True)
class Resolved:
    """A target for one batch: the scores, and for each sample the rows to read."""

    scores: Tensor
    """[batch], still attached to the graph."""
    target: Any
    """Per sample the index into the output, without the batch axis, or a sum of them; the callable itself, if
    it was one."""
    output: str
    rows: tuple[Readout, ...]
    slots: tuple[Slot, ...]
    """The slots of the outputs that were read."""
    questions: tuple[Question, ...] = ()
    """Per sample what its score answers."""


def choose_output(names: Sequence[str], tensors: Sequence[Tensor], wanted: str | None) -> int:
    """The place of the wanted output; if None is, of ``logits``, else of the first floating one."""
    if wanted is not None:
        if wanted not in names:
            raise TargetError(
                f"the model has no output {wanted!r}", expected=" or ".join(names), found=repr(wanted)
            )
        place = names.index(wanted)
        if not tensors[place].is_floating_point():
            raise TargetError(
                f"the output {wanted!r} is not differentiable",
                expected="a floating-point output",
                found=str(tensors[place].dtype),
            )
        return place
    floating = [place for place, tensor in enumerate(tensors) if tensor.is_floating_point()]
    if not floating:
        raise TargetError(
            "the model has no floating-point output to explain",
            expected="an output that is differentiable",
            found=", ".join(names),
        )
    return next((place for place in floating if names[place] == "logits"), floating[0])


def default_output(
    names: Sequence[str], tensors: Sequence[Tensor], values: Sequence[Value], sites: frozenset[int]
) -> str | None:
    """The output to explain where none is named: ``logits``, else the first floating one, of those behind one
    of these sites; None if none is."""
    found = [
        name
        for name, tensor, value in zip(names, tensors, values, strict=True)
        if tensor.is_floating_point() and reads_of(value.active) & sites
    ]
    return "logits" if "logits" in found else next(iter(found), None)


def resolve(
    tensors: Sequence[Tensor],
    values: Sequence[Value],
    captured: Captured,
    target: Any,
    output: str | None,
    batch: int,
    frame: Frame | None = None,
) -> Resolved:
    """Turn a target into scores and the rows to read.

    Args:
        tensors, values: the outputs and their labels.
        captured: has their names, and makes the model's own output structure of them for callables.
        target: None (arg max per sample), an int, one int (or row of ints) per sample, a tuple that indexes
            the output without its batch axis, a sum of such targets, or a callable from the model's output to
            one score per sample.
        output: name of the output to explain.
        batch: number of samples.
        frame: what else is known of the output.
    """
    names = captured.outputs
    if callable(target):
        return _resolve_callable(tensors, values, captured, target, batch)
    place = choose_output(names, tensors, output)
    tensor, value = tensors[place], values[place]
    axis = batch_axis(tensor, value, batch)
    if axis is None:
        tensor, axis = tensor.unsqueeze(0), 0
        value = Value(tuple(Slot(s.labels.unsqueeze(0), s.strength, s.reads) for s in value.slots))
    per_sample = tensor.movedim(axis, 0)
    samples = per_sample.shape[0]
    if not samples:
        raise TargetError(
            "there is nothing to explain", expected="at least one sample", found="an empty batch"
        )
    frame = frame or Frame(names[place])
    found = _of_each(per_sample, each_target(target, samples), frame)
    scores = torch.stack([score_at(per_sample[i], index) for i, (index, _) in enumerate(found)])
    rows = [_rows_of(value.active, index, tensor.shape, axis, i) for i, (index, _) in enumerate(found)]
    _check_finite(scores)
    indices, questions = (tuple(part) for part in zip(*found, strict=True))
    return Resolved(scores, indices, names[place], tuple(rows), value.active, questions)


def _of_each(per_sample: Tensor, targets: Sequence[Any], frame: Frame) -> list[Asked]:
    """The index and the question of each sample.

    Raises:
        TargetError: of the first sample that has none; it names all of them.
    """
    found: list[Asked] = []
    refused: dict[int, TargetError] = {}
    for i, target in enumerate(targets):
        try:
            found.append(asked(per_sample[i].detach(), target, frame, i))
        except TargetError as error:
            refused[i] = error
    if not refused:
        return found
    first = next(iter(refused.values()))
    if found:
        those = ", ".join(map(str, refused))
        others = ", ".join(str(i) for i in range(len(targets)) if i not in refused)
        first.args = (
            f"{first}\n  so it is with: samples {those}; explain the others without them: {others}",
        )
    raise first


def rescored(resolved: Resolved, tensors: Sequence[Tensor], findings: Findings, captured: Captured) -> Tensor:
    """[batch]: the scores of a target that is resolved already, from other values of the outputs."""
    if callable(resolved.target):
        scores: Tensor = resolved.target(captured.rebuild(tensors))
        return scores.reshape(-1)
    again = resolve(
        tensors,
        findings.outputs,
        captured,
        list(resolved.target),
        resolved.output,
        findings.batch,
    )
    return again.scores


def _check_finite(scores: Tensor) -> None:
    if not bool(torch.isfinite(scores).all()):
        raise NonFiniteError(
            "the score to explain is NaN or infinite", expected="finite scores", found=str(scores.tolist())
        )


def batch_axis(tensor: Tensor, value: Value, batch: int) -> int | None:
    """The axis of an output along which the sample changes; None if it holds one sample without such an
    axis."""
    for axis in range(tensor.ndim):
        for slot in value.slots:
            samples = samples_of(slot.labels)
            if axis < samples.ndim and samples.shape[axis] > 1 and tensor.shape[axis] == batch:
                line = samples.movedim(axis, 0)
                if bool((line != line[:1]).any()):
                    return axis
    if tensor.ndim and tensor.shape[0] == batch:
        return 0
    return None


def _rows_of(
    slots: Sequence[Slot], index: tuple[int, ...] | Combined, shape: Sequence[int], axis: int, sample: int
) -> Readout:
    """The tokens that the elements of one sample's target belong to; ``axis`` is the batch's."""
    parts = [_rows_of_part(slots, part, shape, axis, sample) for part in parts_of(index)]
    return tuple(dict.fromkeys(row for rows in parts for row in rows))


def _rows_of_part(
    slots: Sequence[Slot], index: tuple[int, ...], shape: Sequence[int], axis: int, sample: int
) -> Readout:
    if not isinstance(index, Region):
        spot = list(index)
        spot.insert(axis, sample)
        return _rows_at(slots, spot, sample)
    found: dict[tuple[int, int], None] = {}
    for slot in slots:
        labels = slot.labels.expand(tuple(shape)).select(axis, sample)[index[0]]
        picked = torch.unique(labels[index.mask])
        owners, codes = samples_of(picked).tolist(), codes_of(picked).tolist()
        pairs = zip(owners, codes, strict=True)
        found |= {(own if own >= 0 else sample, token): None for own, token in pairs if token >= 0}
    return tuple(found)


def _rows_at(slots: Sequence[Slot], spot: Sequence[int], sample: int) -> Readout:
    """The tokens that one element of an output belongs to."""
    rows = []
    for slot in slots:
        where = tuple(0 if size == 1 else spot[axis] for axis, size in enumerate(slot.labels.shape))
        label = slot.labels[where]
        token, own = int(codes_of(label)), int(samples_of(label))
        if token >= 0:
            rows.append((own if own >= 0 else sample, token))
    return tuple(dict.fromkeys(rows))


def _resolve_callable(
    tensors: Sequence[Tensor],
    values: Sequence[Value],
    captured: Captured,
    target: Callable[[Any], Any],
    batch: int,
) -> Resolved:
    """Scores from the user's own function; the rows are those of the output elements it depends on.

    An output may be made from another one (logits from hidden states or maps that are returned, too). The
    function sees a view of each, so that it depends on those alone that it looks at itself.
    """
    names = captured.outputs
    tensors = [t.view_as(t) if t.requires_grad else t for t in tensors]
    scores = _called(target, captured.rebuild(tensors), names, batch)
    used = [(t, v, n) for t, v, n in zip(tensors, values, names, strict=True) if t.requires_grad]
    rows: list[Readout] = []
    slots: dict[int, Slot] = {}
    touched: dict[str, None] = {}
    for sample in range(batch):
        gradients = torch.autograd.grad(
            scores[sample], [t for t, _, _ in used], retain_graph=True, allow_unused=True
        )
        found: dict[tuple[int, int], None] = {}
        for gradient, (_, value, name) in zip(gradients, used, strict=True):
            if gradient is None:
                continue
            touched[name] = None
            for slot in value.active:
                slots[id(slot)] = slot
                found.update(dict.fromkeys(_rows_touched(slot, gradient, sample)))
        rows.append(tuple(found))
    name = "+".join(touched)
    question = Question("function", name, about=name_of_function(target))
    return Resolved(scores, target, name, tuple(rows), tuple(slots.values()), (question,) * batch)


def _called(target: Callable[[Any], Any], output: Any, names: Sequence[str], batch: int) -> Tensor:
    """[batch]: what the user's function makes of the model's output, if it is a score for each sample."""
    try:
        scores = target(output)
    except Exception as error:
        raise TargetError(
            "the target function raised an error",
            expected="a function from the model's output to one score per sample",
            found=f"{type(error).__name__}: {error}",
            hint=f"the model's outputs are {', '.join(names)}",
        ) from error
    if not isinstance(scores, Tensor):
        raise TargetError(
            "the target function must return a tensor",
            expected=f"a tensor of shape [{batch}]",
            found=type(scores).__name__,
        )
    scores = scores.reshape(1) if scores.ndim == 0 and batch == 1 else scores
    if scores.ndim != 1 or scores.shape[0] != batch:
        raise TargetError(
            "the target function must return one score per sample",
            expected=f"shape [{batch}]",
            found=str(list(scores.shape)),
        )
    _check_finite(scores)
    if not scores.requires_grad:
        raise TargetError(
            "the target function's score is not differentiable, or depends on no attention",
            expected="a score made of the outputs by differentiable operations",
            found="a tensor without a gradient",
            hint="return a sum of elements of the model's output, without argmax, detach or item()",
        )
    return scores


def _rows_touched(slot: Slot, gradient: Tensor, sample: int) -> list[tuple[int, int]]:
    labels = slot.labels.expand(gradient.shape)[(gradient != 0).cpu()]
    labels = torch.unique(labels[labels > 0])
    owners = samples_of(labels).tolist()
    return [
        (own if own >= 0 else sample, token)
        for own, token in zip(owners, codes_of(labels).tolist(), strict=True)
    ]
