"""What a model's output means: told by adapters, which know the libraries that models come from.

The core reads off labels what the axes of an output *are* (:mod:`fxplain.questions`); a task says what they
are *for*. A package tells the tasks of its models by an entry point of the group ``fxplain.tasks``: a
function from a model to a :class:`Task`, or to None where the model is none of its own. A model of yours may
carry its task itself: ``model.fxplain_task = Task("next token")``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

GROUP = "fxplain.tasks"

TaskKind = Literal[
    "next token", "words", "classes", "queries", "places", "embedding", "boxes", "masks", "values", "unknown"
]

BoxForm = Literal["centre", "corners"]


@dataclass(frozen=True)
class Task:
    """What the elements of a model's output are scores of.

    Args:
        kind: ``next token``: each place of a text has scores of the token that follows it. ``words``: each
            place has scores of the token that stands there. ``classes``: the last axis holds classes.
            ``queries``: each of several queries has scores of classes (a detector). ``places``: the first
            axis of a sample holds classes, the others places of a picture. ``embedding``: coordinates, none
            of which means anything by itself. ``boxes``: numbers of each query. ``masks``: a number at each
            place of a picture. ``values``: numbers that are meant as they are. ``unknown``: nothing is known.
        names: names of the classes, by index.
        outputs: outputs that the task is about.
        padding: names of the inputs that are 0 where a place of a text is padding; the output is along the
            first of them that is given.
        nothing: the class that stands for no object, if the output has one of this index.
        boxes: name of the output with the queries' boxes, if there is one.
        box_form: what the four numbers of a box are, as parts of the picture's width and height: ``centre``
            (across, down, width, height) or ``corners`` (left, top, right, bottom).
        independent: whether each class has a probability of its own (a sigmoid), and not a share (a softmax).
            A detector's have where its output has no class for no object.
        within: path of the part of the model that this is the task of; empty for the whole model. An output
            that another part makes is not asked by it: nothing but its padding is known.
        others: name of another output -> what that one holds; one that is not named holds plain values, and
            beside a detector's classes numbers of its queries.

    Example:
        >>> Task("classes", names={0: "bad", 1: "good"}).names[1]
        'good'
    """

    kind: TaskKind = "unknown"
    names: Mapping[int, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("logits",)
    padding: tuple[str, ...] = ()
    nothing: int | None = None
    independent: bool = False
    boxes: str = ""
    box_form: BoxForm = "centre"
    within: str = ""
    others: Mapping[str, TaskKind] = field(default_factory=dict)


UNKNOWN = Task()


def task_of(model: Any) -> Task:
    """What a model says of itself by an attribute ``fxplain_task``, else what some installed package says of
    it; :data:`UNKNOWN` if none does."""
    own = getattr(model, "fxplain_task", None)
    if isinstance(own, Task):
        return own
    return next((task for tell in _tellers() if (task := tell(model)) is not None), UNKNOWN)


@cache
def _tellers() -> tuple[Any, ...]:
    return tuple(point.load() for point in entry_points(group=GROUP))
