"""From a target to the element, or elements, of one sample's output that it asks for.

What is left open is chosen where the task says how: the next token of a text, the surest of a detector's
queries, the places at which a class is predicted. Where that would be a guess, the choices are said instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxplain.errors import TargetError
from fxplain.questions import Axis, Question, box_words
from fxplain.tasks import UNKNOWN, Task


class Region(tuple[int, ...]):
    """Several places of one sample's output, of which the score is the mean: the class, then the places.

    As a tuple it is the index of the class alone; ``mask`` is true at the places.
    """

    mask: Tensor

    def __new__(cls, label: int, mask: Tensor) -> Region:
        made = super().__new__(cls, (label,))
        made.mask = mask
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Region, (self[0], self.mask)


def score_at(scores: Tensor, index: Sequence[int]) -> Tensor:
    """One sample's score: the element at an index, or the mean over a region."""
    if isinstance(index, Region):
        return scores[index[0]][index.mask.to(scores.device)].mean()
    return scores[tuple(index)]


class Largest:
    """Asks for the largest element of each sample's output, whatever the output is for."""

    def __repr__(self) -> str:
        return "LARGEST"


LARGEST = Largest()


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

    @property
    def about(self) -> bool:
        """Whether the task is about this output."""
        return self.output in self.task.outputs


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
    kind = frame.task.kind if frame.about else "values"
    choose = _CHOOSERS.get((kind, scores.ndim))
    if choose is not None and not isinstance(target, tuple):
        index, largest = choose(scores, target, frame, sample)
    else:
        if kind == "values" and frame.task.kind == "queries" and not _full(target, scores):
            raise _ambiguous(frame, f"numbers of shape {list(scores.shape)}, which are no classes", _EDGES)
        index, largest = _plain(scores, target, frame, sample)
    return index, _question(scores, index, frame, sample, largest)


def _full(target: Any, scores: Tensor) -> bool:
    return isinstance(target, tuple) and len(target) == scores.ndim


Chosen = tuple[tuple[int, ...], int]
"""The index, and over how many values it was the largest (0 where it was named)."""


def _next_token(scores: Tensor, target: int | None, frame: Frame, sample: int) -> Chosen:
    place = int(_real_places(scores, frame, sample)[-1])
    word, largest = _class_at(scores[place], target, scores, target)
    return (place, word), largest


def _surest(scores: Tensor, target: int | None, frame: Frame, sample: int) -> Chosen:
    nothing = frame.task.nothing
    shown = scores.clone()
    if nothing is not None and nothing < scores.shape[-1] and target is None:
        shown[:, nothing] = -torch.inf
    dead = torch.ones(len(scores), dtype=torch.bool)
    dead[_real_places(scores, frame, sample)] = False
    shown[dead.to(shown.device)] = -torch.inf
    if target is None:
        best = int(shown.reshape(-1).argmax())
        return divmod(best, scores.shape[-1]), int(torch.isfinite(shown).sum())
    label = _within(target, scores.shape[-1], scores, target)
    return (int(shown[:, label].argmax()), label), 0


def _region(scores: Tensor, target: int | None, frame: Frame, sample: int) -> Chosen:
    predicted = scores.argmax(0)
    if target is None:
        raise _ambiguous(frame, f"a picture of classes: {_counts(predicted, frame)}", _CLASSES)
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


def _coordinate(scores: Tensor, target: int | None, frame: Frame, sample: int) -> Chosen:
    if target is None or scores.ndim > 1:
        raise _ambiguous(frame, f"coordinates of shape {list(scores.shape)}", _COORDINATES)
    return _plain(scores, target, frame, sample)


def _word(scores: Tensor, target: int | None, frame: Frame, sample: int) -> Chosen:
    raise _ambiguous(frame, f"scores of {scores.shape[-1]} words at each of {len(scores)} places", _WORDS)


_CHOOSERS: dict[tuple[str, int], Callable[[Tensor, Any, Frame, int], Chosen]] = {
    ("next token", 2): _next_token,
    ("words", 2): _word,
    ("queries", 2): _surest,
    ("classes", 2): _surest,
    ("places", 3): _region,
    ("embedding", 1): _coordinate,
    ("embedding", 2): _coordinate,
    ("embedding", 3): _coordinate,
}

_CLASSES = (
    ("one class, over the places where it is predicted", "target=3, or its name"),
    ("one class at one place", "target=(3, row, column)"),
)
_EDGES = (
    ("one number of one query", "target=(7, 0), the first number of query 7"),
    ("a class, as the surest query sees it", "another output=, which holds classes"),
)
_WORDS = (
    ("one word at one place, such as a masked one", "target=(4, 17), word 17 at place 4"),
    ("the likeliest word at one place", "target=(4,)"),
)
_COORDINATES = (
    ("the similarity to another text or picture", "target=lambda out: out.pooler_output @ other"),
    ("one coordinate", "target=3 where there is one vector, else target=(place, 3)"),
    ("the length of the vector", "target=lambda out: out.pooler_output.norm(dim=-1)"),
)


def _ambiguous(frame: Frame, found: str, choices: Sequence[tuple[str, str]]) -> TargetError:
    return TargetError(
        f"the output {frame.output!r} can be asked in several ways, and none is the usual one",
        expected="; ".join(f"{what}: {how}" for what, how in choices),
        found=found,
        hint="choose one of these",
    )


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
    ndim = scores.ndim
    fixed = (
        {} if target is None else {ndim - 1: target} if isinstance(target, int) else dict(enumerate(target))
    )
    shape = tuple(scores.shape)
    for axis, place in fixed.items():
        if not 0 <= axis < ndim:
            raise _out_of_range(scores, target)
        fixed[axis] = _at(place, axis, frame, sample, scores, target)
    if len(fixed) == ndim:
        return tuple(fixed[axis] for axis in range(ndim)), 0
    view = scores
    for axis in sorted(fixed):
        view = view.narrow(axis, fixed[axis], 1)
    if frame.real is not None and 0 not in fixed and ndim:
        padding = (~frame.real[sample]).to(view.device)
        view = view.masked_fill(padding.view(-1, *[1] * (ndim - 1)), -torch.inf)
    best = int(view.reshape(-1).argmax()) if view.numel() else 0
    rest = torch.unravel_index(torch.tensor(best), view.shape)
    return tuple(
        fixed.get(axis, int(r)) for axis, r in zip(range(len(shape)), rest, strict=True)
    ), view.numel()


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
    kind = frame.task.kind if frame.about else "values"
    axes = frame.axes or tuple(Axis("features", "", size) for size in scores.shape)
    said = Question("coordinate", frame.output, tuple(index), axes, largest=largest)
    if isinstance(index, Region):
        said = replace(said, kind="region", places=int(index.mask.sum()))
    elif kind == "next token" and scores.ndim == 2:
        said = replace(said, kind="next token", probability=_likely(scores[index[0]], index[1], frame))
    elif kind == "classes" and scores.ndim == 1:
        said = replace(said, kind="class", probability=_likely(scores, index[0], frame))
    elif kind == "words" and scores.ndim == 2:
        said = replace(said, kind="word", probability=_likely(scores[index[0]], index[1], frame))
    elif kind == "places" and scores.ndim == 3:
        said = replace(said, kind="place")
    elif kind in ("classes", "queries") and scores.ndim == 2:
        box = "" if frame.boxes is None else box_words(frame.boxes[sample, index[0]])
        said = replace(said, kind="query", probability=_likely(scores[index[0]], index[1], frame), about=box)
    if frame.real is not None and index and not bool(frame.real[sample, index[0]]):
        said = replace(said, about="which is padding")
    return said.named(frame.task.names)


def _likely(scores: Tensor, label: int, frame: Frame) -> float:
    shares = scores.float().sigmoid() if frame.task.independent else scores.float().softmax(-1)
    return float(shares[label])
