"""From a target to the element, or elements, of one sample's output that it asks for.

What is left open is chosen where the task says how: the next token of a text, the surest of a detector's
queries, the places at which a class is predicted. Where that would be a guess, the choices are said instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxplain.errors import TargetError
from fxplain.questions import Axis, Question, Spot, box_words
from fxplain.run.choices import ambiguous
from fxplain.run.wishes import Largest, Point, Region, corners, joined
from fxplain.tasks import UNKNOWN, Task, TaskKind


@dataclass(frozen=True, eq=False)
class Frame:
    """What is known of an output beside its numbers."""

    output: str
    axes: tuple[Axis, ...] = ()
    """Those of one sample; empty where nothing is known."""
    task: Task = UNKNOWN
    real: Tensor | None = None
    """[batch, place]: which places of the first axis are no padding; None where all are."""
    boxes: Tensor | None = None
    """[batch, query, edge]: where a detector's queries see their objects."""
    beside: tuple[str, ...] = ()
    """The other outputs that the task is about."""

    @property
    def kind(self) -> TaskKind:
        """What this output holds; a nested output is known by its own name."""
        if self.output in self.task.outputs:
            return self.task.kind
        rest: TaskKind = "boxes" if self.task.kind == "queries" else "values"
        return self.task.others.get(self.output.rpartition(".")[2], rest)

    @property
    def nothing(self) -> int | None:
        """The class for no object, if this output has one."""
        nothing = self.task.nothing
        classes = self.axes[-1].size if self.axes else 0
        return nothing if self.kind == "queries" and nothing is not None and nothing < classes else None

    @property
    def independent(self) -> bool:
        """Whether each class has a probability of its own."""
        return self.task.independent or (self.kind == "queries" and self.nothing is None)


Asked = tuple[tuple[int, ...], Question]


def asked(scores: Tensor, target: Any, frame: Frame, sample: int) -> Asked:
    """The index into one sample's output that a target asks for, and the question in words.

    Args:
        scores: one sample's output.
        target: None, an int, or a tuple that may leave the last axes open.

    Raises:
        TargetError: the target is out of range, or the question is ambiguous; it lists the choices.
    """
    if isinstance(target, Largest):
        index, largest = _plain(scores, None, frame, sample)
        return index, _question(scores, index, frame, sample, largest)
    if isinstance(target, Region):
        return target, _question(scores, target, frame, sample, 0)
    if isinstance(target, Point):
        region, about = _around(scores, target, frame)
        return region, replace(_question(scores, region, frame, sample, 0), about=about)
    refused(frame, scores, target)
    choose = _CHOOSERS.get((frame.kind, scores.ndim))
    if choose is not None and not isinstance(target, tuple):
        index, largest = choose(scores, target, frame, sample)
    else:
        index, largest = _plain(scores, target, frame, sample)
    return index, _question(scores, index, frame, sample, largest)


_NO_LARGEST: Mapping[TaskKind, str] = {
    "boxes": "numbers of shape {shape}, which are no classes",
    "masks": "numbers of shape {shape}, each at a place of a picture",
    "embedding": "coordinates of shape {shape}",
}
"""Outputs of which the largest element is no answer to anything."""


def _full(target: Any, scores: Tensor) -> bool:
    """Whether a target leaves nothing open."""
    named = 0 if target is None else len(target) if isinstance(target, tuple) else 1
    return named >= scores.ndim


Chosen = tuple[tuple[int, ...], int]
"""The index, and over how many values it was the largest (0 where it was named)."""


def _next_token(scores: Tensor, target: int | None, frame: Frame, sample: int) -> Chosen:
    place = int(_real_places(scores, frame, sample)[-1])
    word, largest = _class_at(scores[place], target, scores, target)
    return (place, word), largest


def sureness(scores: Tensor, frame: Frame, sample: int, any_class: bool) -> Tensor:
    """[query, class]: the logarithm of each probability; minus infinity at padding and, if any class is
    meant, for no object."""
    logs = torch.nn.functional.logsigmoid(scores) if frame.independent else scores.log_softmax(-1)
    shown = logs.clone()
    if frame.nothing is not None and any_class:
        shown[:, frame.nothing] = -torch.inf
    dead = torch.ones(len(scores), dtype=torch.bool)
    dead[_real_places(scores, frame, sample)] = False
    shown[dead.to(shown.device)] = -torch.inf
    return shown


def _surest(scores: Tensor, target: int | None, frame: Frame, sample: int) -> Chosen:
    shown = sureness(scores, frame, sample, target is None)
    if target is None:
        best = int(shown.reshape(-1).argmax())
        return divmod(best, scores.shape[-1]), int(torch.isfinite(shown).sum())
    label = _within(target, scores.shape[-1], scores, target)
    return (int(shown[:, label].argmax()), label), 0


def _region(scores: Tensor, target: int | None, frame: Frame, sample: int) -> Chosen:
    predicted = scores.argmax(0)
    if target is None:
        raise _ambiguous(frame, scores, f"a picture of classes: {_counts(predicted, frame)}")
    label = _within(target, len(scores), scores, target)
    mask = (predicted == label).cpu()
    if not bool(mask.any()):
        raise TargetError(
            f"class {_called(label, frame)} is predicted nowhere",
            where=f"output {frame.output!r}, sample {sample}",
            expected=f"a class that is: {_counts(predicted, frame)}",
            found=f"class {_called(label, frame)}",
            hint=f"ask for one place of it: target=({label}, row, column)",
        )
    return Region(label, mask), 0


def _around(scores: Tensor, point: Point, frame: Frame) -> tuple[Region, str]:
    """The class at a point over the places that are joined to it, side by side, and have it too."""
    if frame.kind != "places" or scores.ndim != 3:
        raise TargetError(
            "a point can be asked of a segmentation alone",
            where=f"output {frame.output!r}",
            expected="an output [class, row, column] of a model that segments",
            found=f"an output of shape {list(scores.shape)}, {frame.kind}",
        )
    if not (0 <= point.across <= 1 and 0 <= point.down <= 1):
        raise TargetError(
            "the point lies outside the picture",
            expected="parts of the picture's width and height, 0 to 1",
            found=f"{point.across:g}, {point.down:g}",
        )
    predicted = scores.argmax(0).cpu()
    rows, columns = predicted.shape
    row = min(int(point.down * rows), rows - 1)
    column = min(int(point.across * columns), columns - 1)
    label = int(predicted[row, column])
    return Region(label, joined(predicted == label, row, column)), f"around row {row}, column {column}"


def _word(scores: Tensor, target: int | None, frame: Frame, sample: int) -> Chosen:
    raise _ambiguous(frame, scores, f"scores of {scores.shape[-1]} words at each of {len(scores)} places")


_CHOOSERS: dict[tuple[str, int], Callable[[Tensor, Any, Frame, int], Chosen]] = {
    ("next token", 2): _next_token,
    ("words", 2): _word,
    ("queries", 2): _surest,
    ("classes", 2): _surest,
    ("places", 3): _region,
}


def refused(frame: Frame, scores: Tensor, target: Any) -> None:
    """Refuse an output of which the largest element is no answer to anything, unless all of it is named."""
    if frame.kind in _NO_LARGEST and not _full(target, scores):
        raise _ambiguous(frame, scores, _NO_LARGEST[frame.kind].format(shape=list(scores.shape)))


def _ambiguous(frame: Frame, scores: Tensor, found: str) -> TargetError:
    return ambiguous(frame.kind, frame.output, scores.shape, found, next(iter(frame.beside), ""))


def _counts(predicted: Tensor, frame: Frame) -> str:
    labels, counts = torch.unique(predicted, return_counts=True)
    most = counts.argsort(descending=True)[:5].tolist()
    return ", ".join(f"{_called(int(labels[i]), frame)} at {int(counts[i])} places" for i in most)


def _called(label: int, frame: Frame) -> str:
    name = frame.task.names.get(label)
    return f"{label} ({name})" if name else str(label)


def _class_at(scores: Tensor, target: int | None, whole: Tensor, asked: Any) -> tuple[int, int]:
    if target is None:
        return int(scores.argmax()), len(scores)
    return _within(target, len(scores), whole, asked), 0


def _real_places(scores: Tensor, frame: Frame, sample: int) -> Tensor:
    """The places of the first axis that are no padding."""
    if frame.real is None:
        return torch.arange(len(scores))
    return frame.real[sample].nonzero().reshape(-1)


def _plain(scores: Tensor, target: Any, frame: Frame, sample: int) -> Chosen:
    """An index as it is written; what it leaves open is the largest value, at a place that is no padding."""
    fixed, view = opened(scores, target, frame, sample)
    if len(fixed) == scores.ndim:
        return tuple(fixed[axis] for axis in range(scores.ndim)), 0
    best = int(view.reshape(-1).argmax()) if view.numel() else 0
    return filled(fixed, view, best), int(torch.isfinite(view).sum())


def filled(fixed: Mapping[int, int], view: Tensor, place: int) -> tuple[int, ...]:
    """The whole index of one place of what a target leaves open; see :func:`opened`."""
    rest = torch.unravel_index(torch.tensor(place), view.shape)
    return tuple(fixed.get(axis, int(r)) for axis, r in enumerate(rest))


def opened(scores: Tensor, target: Any, frame: Frame, sample: int) -> tuple[dict[int, int], Tensor]:
    """The axes that a target names, and what it leaves open: of size 1 along these, minus infinity at
    padding and at the class for no object."""
    ndim = scores.ndim
    fixed = (
        {} if target is None else {ndim - 1: target} if isinstance(target, int) else dict(enumerate(target))
    )
    for axis, place in fixed.items():
        if not 0 <= axis < ndim:
            raise _out_of_range(scores, target)
        fixed[axis] = _at(place, axis, frame, sample, scores, target)
    view = scores
    for axis in sorted(fixed):
        view = view.narrow(axis, fixed[axis], 1)
    if frame.real is not None and 0 not in fixed and ndim:
        padding = (~frame.real[sample]).to(view.device)
        view = view.masked_fill(padding.view(-1, *[1] * (ndim - 1)), -torch.inf)
    if frame.nothing is not None and fixed and ndim - 1 not in fixed:
        empty = torch.arange(view.shape[-1], device=view.device) == frame.nothing
        view = view.masked_fill(empty, -torch.inf)
    return fixed, view


def _at(place: Any, axis: int, frame: Frame, sample: int, scores: Tensor, target: Any) -> int:
    """A place on an axis. A negative one on that of a text counts from its last place that is no padding."""
    if axis == 0 and frame.real is not None and isinstance(place, int) and place < 0:
        real = _real_places(scores, frame, sample)
        return int(real[_within(place, len(real), scores, target)])
    return _within(place, scores.shape[axis], scores, target)


def _within(place: Any, size: int, scores: Tensor, target: Any) -> int:
    if not isinstance(place, int) or isinstance(place, bool) or not -size <= place < size:
        raise _out_of_range(scores, target)
    return place % size


def _out_of_range(scores: Tensor, target: Any) -> TargetError:
    return TargetError(
        "the target is out of range",
        expected=f"an index into one sample's output of shape {list(scores.shape)}",
        found=repr(target),
        hint="count from 0; a tuple indexes one sample's output, without the batch axis",
    )


def _question(scores: Tensor, index: tuple[int, ...], frame: Frame, sample: int, largest: int) -> Question:
    kind = frame.kind
    axes = frame.axes or tuple(Axis("features", "", size) for size in scores.shape)
    said = Question("coordinate", frame.output, tuple(index), axes, largest=largest)
    if isinstance(index, Region):
        said = replace(said, kind="region", spot=Spot.of_places(index.mask))
    elif kind == "next token" and scores.ndim == 2:
        said = replace(said, kind="next token", probability=_likely(scores[index[0]], index[1], frame))
    elif kind == "classes" and scores.ndim == 1:
        said = replace(said, kind="class", probability=_likely(scores, index[0], frame))
    elif kind == "words" and scores.ndim == 2:
        said = replace(said, kind="word", probability=_likely(scores[index[0]], index[1], frame))
    elif kind == "places" and scores.ndim == 3:
        said = replace(said, kind="place")
    elif kind in ("classes", "queries") and scores.ndim == 2:
        said = replace(said, kind="query", probability=_likely(scores[index[0]], index[1], frame))
        if frame.boxes is not None:
            box = frame.boxes[sample, index[0]]
            said = replace(said, about=box_words(box), spot=Spot(box=corners(box, frame.task.box_form)))
    if frame.real is not None and index and not bool(frame.real[sample, index[0]]):
        said = replace(said, about="which is padding")
    if frame.nothing is not None and index[-1:] == (frame.nothing,):
        return said.named({frame.nothing: "no object"})
    return said.named(frame.task.names)


def _likely(scores: Tensor, label: int, frame: Frame) -> float:
    shares = scores.float().sigmoid() if frame.independent else scores.float().softmax(-1)
    return float(shares[label])
