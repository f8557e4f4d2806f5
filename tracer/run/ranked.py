"""The likeliest answers of one sample in order: classes, words, a detector's sure queries, regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxplain.errors import TargetError
from fxplain.run.asked import Frame, asked, filled, opened, refused, sureness
from fxplain.run.wishes import Region

CONFIDENT = 0.5
"""The least probability of a detection, if nothing else is asked for."""


@dataclass(frozen=True)
class Likeliest:
    """Asks for several answers; made by :func:`fxplain.targets.likeliest`.

    Args:
        count: how many at most.
        target: what is named of them, as a target may leave axes open.
        threshold: the least probability of one. The first is there in any case.
    """

    count: int
    target: Any = None
    threshold: float | None = None


Ranks = tuple[list[tuple[int, ...]], int]
"""The targets of one sample, and how many more there would be but for the threshold."""


def ranked(scores: Tensor, wanted: Likeliest, frame: Frame, sample: int) -> Ranks:
    """The likeliest answers of one sample, as targets.

    Args:
        scores: one sample's output.
        wanted: how many, and which.
        frame: what is known of the output.
        sample: its number.

    Raises:
        TargetError: the output has no likeliest answers, or only one is left open.
    """
    if not isinstance(wanted.count, int) or wanted.count < 1:
        raise TargetError(
            "several answers are counted", expected="a whole number, at least 1", found=repr(wanted.count)
        )
    refused(frame, scores, wanted.target)
    choose = _RANKERS.get((frame.kind, scores.ndim), _along)
    found = choose(scores, wanted.target, frame, sample, wanted.count)
    least = CONFIDENT if wanted.threshold is None and frame.kind == "queries" else wanted.threshold
    if least is None:
        return found, 0
    likely = [asked(scores, index, frame, sample)[1].probability for index in found]
    kept = [i for i, one in zip(found, likely, strict=True) if one is None or one >= least]
    return kept or found[:1], len(found) - len(kept or found[:1])


def _along(scores: Tensor, target: Any, frame: Frame, sample: int, count: int) -> list[tuple[int, ...]]:
    """The largest values of what a target leaves open."""
    fixed, view = opened(scores, target, frame, sample)
    if len(fixed) == scores.ndim:
        raise _named_already(target, scores)
    return _largest(fixed, view, count)


def _largest(fixed: Mapping[int, int], view: Tensor, count: int) -> list[tuple[int, ...]]:
    flat = view.reshape(-1)
    order = flat.topk(min(count, flat.numel())).indices.tolist()
    return [filled(fixed, view, place) for place in order if bool(torch.isfinite(flat[place]))]


def _next_tokens(scores: Tensor, target: Any, frame: Frame, sample: int, count: int) -> list[tuple[int, ...]]:
    """The likeliest next tokens after the last place that is no padding, or after the one that is named."""
    (place, _), _ = asked(scores, None, frame, sample)
    return _along(scores, (place,) if target is None else target, frame, sample, count)


def _queries(scores: Tensor, target: Any, frame: Frame, sample: int, count: int) -> list[tuple[int, ...]]:
    """Each query with its likeliest class (or with the one that is named), the surest query first."""
    if isinstance(target, tuple):
        return _along(scores, target, frame, sample, count)
    shown = sureness(scores, frame, sample, target is None)
    if target is None:
        sure, classes = shown.max(-1)
    else:
        label = asked(scores, target, frame, sample)[0][-1]
        sure, classes = shown[:, label], torch.full((len(shown),), label)
    order = sure.topk(min(count, len(sure))).indices.tolist()
    return [(query, int(classes[query])) for query in order if bool(torch.isfinite(sure[query]))]


def _regions(scores: Tensor, target: Any, frame: Frame, sample: int, count: int) -> list[tuple[int, ...]]:
    """The classes that are predicted at most places, each over all of them."""
    if target is not None:
        return _along(scores, target, frame, sample, count)
    predicted = scores.argmax(0).cpu()
    labels, places = torch.unique(predicted, return_counts=True)
    order = places.argsort(descending=True)[:count].tolist()
    return [Region(int(labels[i]), predicted == labels[i]) for i in order]


def _words(scores: Tensor, target: Any, frame: Frame, sample: int, count: int) -> list[tuple[int, ...]]:
    if target is None:
        asked(scores, None, frame, sample)  # refuses, with the choices
    return _along(scores, target, frame, sample, count)


_RANKERS: Mapping[tuple[str, int], Callable[[Tensor, Any, Frame, int, int], list[tuple[int, ...]]]] = {
    ("next token", 2): _next_tokens,
    ("queries", 2): _queries,
    ("classes", 2): _queries,
    ("places", 3): _regions,
    ("words", 2): _words,
}


def _named_already(target: Any, scores: Tensor) -> TargetError:
    return TargetError(
        "the target names one answer, so there are not several",
        expected=f"a target that leaves an axis of {list(scores.shape)} open, or none",
        found=repr(target),
        hint="leave the target out, or explain this one without top=",
    )
